"""What stands in for code that cannot be traced: functions from the original to another."""

from __future__ import annotations

import contextvars
import functools
from typing import Any


def stated_causality(_: Any) -> Any:
    """Causality as it is said, not as the mask's values show it."""

    def detect(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
        return bool(is_causal)

    return detect


def shared_heads(attention: Any) -> Any:
    """Attention that is told where one head of keys serves all queries."""

    @functools.wraps(attention)
    def attend(query: Any, key: Any, value: Any, *arguments: Any, **options: Any) -> Any:
        if query.ndim == key.ndim == 4 and key.shape[1] == 1 != query.shape[1]:
            options["enable_gqa"] = True
        return attention(query, key, value, *arguments, **options)

    return attend


def flat_pool(forward: Any) -> Any:
    """Pooling along one axis as pooling of an image of height 1."""

    @functools.wraps(forward)
    def pool(self: Any, values: Any) -> Any:
        import torch

        if self.return_indices:
            return forward(self, values)
        # A number, or a tuple of one.
        size, stride, padding, dilation = (
            one[0] if isinstance(one, tuple) else one
            for one in (self.kernel_size, self.stride, self.padding, self.dilation)
        )
        return torch.nn.functional.max_pool2d(
            values.unsqueeze(-2),
            (1, size),
            (1, stride),
            (0, padding),
            (1, dilation),
            self.ceil_mode,
        ).squeeze(-2)

    return pool


def first_node_first(match: Any) -> Any:
    """Patterns of several outputs, tried only where their first node may be this one."""

    @functools.wraps(match)
    def match_here(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        from onnxscript.rewriter import MatchResult

        if not self.pattern.has_single_output_node:
            wanted = self.pattern.output_nodes[0].op_identifier()
            if wanted is not None and wanted != node.op_identifier():
                return MatchResult().fail("the first node of the pattern is another")
        return match(self, model, graph, node, **options)

    return match_here


def one_scan(_: Any) -> Any:
    """The recurrence of Mamba as one operator that loops, whatever the length."""

    def selective_scan(
        hidden_states: Any,
        dt: Any,
        A: Any,
        B: Any,
        C: Any,
        D: Any = None,
        z: Any = None,
        delta_bias: Any = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        **_: Any,
    ) -> Any:
        import torch
        from torch._higher_order_ops.scan import scan

        if delta_bias is not None:
            dt = dt + delta_bias.to(dt.dtype)[..., None]
        if delta_softplus:
            dt = torch.nn.functional.softplus(dt)

        def step(state: Any, now: tuple[Any, ...]) -> tuple[Any, Any]:
            wait, entry, seen, given = now
            state = torch.exp(A * wait[..., None]) * state
            state = state + (wait * given)[..., None] * entry[:, None, :]
            return state, (state * seen[:, None, :]).sum(-1)

        # Time first: [length, batch, ...]. Sizes from what computes, so that none is a constant.
        inputs = (dt.permute(2, 0, 1), B.permute(2, 0, 1), C.permute(2, 0, 1))
        start = (hidden_states[:, :, :1] * 0).expand(-1, -1, A.shape[-1]).float().contiguous()
        last, output = scan(step, start, (*inputs, hidden_states.permute(2, 0, 1).float()))
        output = output.permute(1, 2, 0)
        if D is not None:
            output = output + hidden_states * D[None, :, None]
        if z is not None:
            output = output * torch.nn.functional.silu(z)
        return (output, last) if return_last_state else output

    return selective_scan


def sums_of_blocks(_: Any) -> Any:
    """The sum of each block's states, whatever the number of blocks."""

    def sums(hidden_states: Any, block_ids: Any, global_seq_len: Any) -> Any:
        import torch

        blocks = torch.arange(global_seq_len, dtype=block_ids.dtype, device=block_ids.device)
        is_of = (block_ids[..., None] == blocks).to(hidden_states.dtype)
        return is_of.transpose(-1, -2) @ hidden_states

    return sums


def first_is_last(_: Any) -> Any:
    """MBart's shift to the right: the last token that is no padding comes first."""

    def shift(input_ids: Any, pad_token_id: int) -> Any:
        import torch

        ids = input_ids.masked_fill(input_ids == -100, pad_token_id)
        last = ids.ne(pad_token_id).sum(dim=1, keepdim=True) - 1
        return torch.cat([ids.gather(1, last), ids[:, :-1]], dim=1)

    return shift


# Whether the Longformer being traced has tokens with global attention.
_HAS_GLOBAL = contextvars.ContextVar("_HAS_GLOBAL", default=True)


def said_globality(forward: Any) -> Any:
    """Whether there are tokens with global attention, from the inputs that are given."""

    @functools.wraps(forward)
    def say(self: Any, *arguments: Any, **inputs: Any) -> Any:
        token = _HAS_GLOBAL.set(inputs.get("global_attention_mask") is not None)
        try:
            return forward(self, *arguments, **inputs)
        finally:
            _HAS_GLOBAL.reset(token)

    return say


def unpadded(_: Any) -> Any:
    """No padding to a multiple of the window."""

    def pad(self: Any, pad_token_id: int, **inputs: Any) -> tuple[Any, ...]:
        order = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
        return 0, *(inputs[name] for name in order if name in inputs)

    return pad


def dense_window(_: Any) -> Any:
    """Attention in a window, and of and to global tokens, as attention with a mask."""

    def forward(
        self: Any,
        hidden_states: Any,
        attention_mask: Any = None,
        is_index_masked: Any = None,
        is_index_global_attn: Any = None,
        is_global_attn: Any = None,
        output_attentions: bool = False,
    ) -> tuple[Any, ...]:
        import torch

        batch, length, width = hidden_states.shape

        def heads(values: Any) -> Any:
            return values.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)

        def attend(query: Any, key: Any, value: Any, seen: Any) -> Any:
            inputs = (heads(project(hidden_states)) for project in (query, key, value))
            return torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=seen)

        places = torch.arange(length, device=hidden_states.device)
        near = (places[:, None] - places[None, :]).abs() <= self.one_sided_attn_window_size
        seen = near[None, None] & (attention_mask == 0)[:, None, None, :]
        has_global = _HAS_GLOBAL.get()
        if has_global:
            seen = seen | is_index_global_attn[:, None, None, :]
        output = attend(self.query, self.key, self.value, seen)
        output = output.masked_fill(is_index_masked[:, None, :, None], 0.0)
        if has_global:
            seen = ~is_index_masked[:, None, None, :].expand(batch, 1, length, length)
            whole = attend(self.query_global, self.key_global, self.value_global, seen)
            output = torch.where(is_index_global_attn[:, None, :, None], whole, output)
        return (output.transpose(1, 2).reshape(batch, length, width),)

    return forward


def real_rotation(_: Any) -> Any:
    """Llama 4's rotary angles as cosines and sines beside each other, not as complex numbers."""

    def forward(self: Any, x: Any, position_ids: Any) -> Any:
        import torch

        angles = position_ids[..., None].float() * self.inv_freq.to(x.device).float()
        return torch.stack([angles.cos(), angles.sin()], dim=-1) * self.attention_scaling

    return forward


def rotated_pairs(_: Any) -> Any:
    """Neighbouring values as pairs, turned by what ``real_rotation`` gives."""

    def apply(query: Any, key: Any, angles: Any) -> tuple[Any, Any]:
        import torch

        cos, sin = angles[:, :, None, :, 0], angles[:, :, None, :, 1]

        def turned(values: Any) -> Any:
            even, odd = values.float()[..., ::2], values.float()[..., 1::2]
            pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
            return pairs.flatten(3).type_as(values)

        return turned(query), turned(key)

    return apply


def counted_mask(_: Any) -> Any:
    """CPM-Ant's mask, with positions counted by an operator and not by a Python list."""

    def prepare(self: Any, input_ids: Any, span: Any, context: Any, length: Any) -> Any:
        import torch

        batch, size = input_ids.shape
        places = torch.arange(size, device=input_ids.device)
        ahead = places[None, :] <= places[:, None]
        seen = context[:, None, :] | (context[:, :, None].logical_not() & ahead[None])
        seen = seen & (span[:, None, :] == span[:, :, None])
        # Padding is on the left, between the prompt and the text.
        to_end = size - 1 - places[self.prompt_length :]
        real = to_end[None, :] < length[:, None]
        real = torch.cat([real.new_ones(batch, self.prompt_length), real], dim=1)
        return real[:, :, None] & real[:, None, :] & seen

    return prepare


def blocks_as_mask(attend: Any) -> Any:
    """Canine's attention within blocks of characters, as attention with a mask."""

    @functools.wraps(attend)
    def forward(
        self: Any, hidden_states: Any, attention_mask: Any = None, output_attentions: bool = False
    ) -> Any:
        import torch

        anchored = self.always_attend_to_first_position or self.first_position_attends_to_all
        width = self.attend_from_chunk_width
        widths = (self.attend_from_chunk_stride, self.attend_to_chunk_width)
        if not self.local or anchored or {*widths, self.attend_to_chunk_stride} != {width}:
            return attend(self, hidden_states, attention_mask, output_attentions)
        block = torch.arange(hidden_states.shape[1], device=hidden_states.device) // width
        other = block[:, None] != block[None, :]
        # A block of padding averages its own characters: the lowest number, not minus infinity.
        lowest = torch.finfo(hidden_states.dtype).min
        hidden = (1.0 - attention_mask[:, None].to(hidden_states.dtype)) * lowest
        hidden = hidden.masked_fill(other, -torch.inf)
        output, *maps = self.self(hidden_states, hidden_states, hidden, output_attentions)
        return (self.output(output, hidden_states), *maps)

    return forward
