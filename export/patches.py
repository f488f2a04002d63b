"""Changes to PyTorch and models while they are traced, each with its reason; undone afterwards."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Patch:
    """One attribute, replaced while a module is traced.

    Attributes:
        target: ``"module:attribute.path"``.
        replacement: Stands in for it; called with the original, returns what to install.
        reason: What the original does that cannot be traced, and until when.
    """

    target: str
    replacement: Callable[[Any], Any]
    reason: str


def _stated_causality(_: Any) -> Any:
    def detect(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
        return bool(is_causal)

    return detect


def _shared_heads(attention: Any) -> Any:
    @functools.wraps(attention)
    def attend(query: Any, key: Any, value: Any, *arguments: Any, **options: Any) -> Any:
        if query.ndim == key.ndim == 4 and key.shape[1] == 1 != query.shape[1]:
            options["enable_gqa"] = True
        return attention(query, key, value, *arguments, **options)

    return attend


def _first_is_last(_: Any) -> Any:
    def shift(input_ids: Any, pad_token_id: int) -> Any:
        import torch

        ids = input_ids.masked_fill(input_ids == -100, pad_token_id)
        last = ids.ne(pad_token_id).sum(dim=1, keepdim=True) - 1
        return torch.cat([ids.gather(1, last), ids[:, :-1]], dim=1)

    return shift


# Whether the Longformer being traced has tokens with global attention.
_HAS_GLOBAL = contextvars.ContextVar("_HAS_GLOBAL", default=True)


def _said_globality(forward: Any) -> Any:
    @functools.wraps(forward)
    def say(self: Any, *arguments: Any, **inputs: Any) -> Any:
        token = _HAS_GLOBAL.set(inputs.get("global_attention_mask") is not None)
        try:
            return forward(self, *arguments, **inputs)
        finally:
            _HAS_GLOBAL.reset(token)

    return say


def _unpadded(_: Any) -> Any:
    def pad(self: Any, pad_token_id: int, **inputs: Any) -> tuple[Any, ...]:
        order = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
        return 0, *(inputs[name] for name in order if name in inputs)

    return pad


def _dense_window(_: Any) -> Any:
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


_LONGFORMER = "transformers.models.longformer.modeling_longformer"
_LED = "transformers.models.led.modeling_led"

PATCHES: tuple[Patch, ...] = (
    Patch(
        "torch.nn.modules.transformer:_detect_is_causal_mask",
        _stated_causality,
        "nn.TransformerEncoder and nn.TransformerDecoder compare the mask's values with a causal "
        "one to pick a kernel: a branch on data. The mask itself is applied either way. Until "
        "torch.export skips the check.",
    ),
    Patch(
        "torch.nn.functional:scaled_dot_product_attention",
        _shared_heads,
        "One head of keys for all heads of queries (Falcon) is broadcast without being said, "
        "which PyTorch's translation to ONNX refuses. Until it broadcasts too.",
    ),
    *(
        Patch(
            f"transformers.models.{name}.modeling_{name}:shift_tokens_right",
            _first_is_last,
            "Squeezes the last tokens of the batch over all axes, so that a batch of 1 becomes a "
            "number (modeling_mbart.py, shift_tokens_right), which a graph for any batch cannot. "
            "Until transformers names the axis.",
        )
        for name in ("mbart", "plbart")
    ),
    *(
        Patch(
            f"{module}:{attention}.forward",
            _dense_window,
            "Attention in a sliding window is cut out with sizes and strides that tracing takes "
            "for constants, and looks up the global tokens of the batch, a size that depends on "
            "data. With a mask it is the same numbers at any length, and one Attention node. Until "
            "transformers has it as a mask.",
        )
        for module, attention in (
            (_LONGFORMER, "LongformerSelfAttention"),
            (_LED, "LEDEncoderSelfAttention"),
        )
    ),
    *(
        Patch(
            f"{module}:{model}._pad_to_window_size",
            _unpadded,
            "Pads to a multiple of the window, an `if` on the length; attention with a mask needs "
            "no padding. Until transformers has the window as a mask.",
        )
        for module, model in ((_LONGFORMER, "LongformerModel"), (_LED, "LEDEncoder"))
    ),
    *(
        Patch(
            f"{module}:{model}.forward",
            _said_globality,
            "Whether there are global tokens is asked of the data; whether there is a mask for "
            "them is known. Until transformers asks for the mask.",
        )
        for module, model in ((_LONGFORMER, "LongformerModel"), (_LED, "LEDEncoder"))
    ),
)


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Apply ``PATCHES``; whatever happens, take them back."""
    with contextlib.ExitStack() as stack:
        for patch in PATCHES:
            module, _, path = patch.target.partition(":")
            owner: Any = importlib.import_module(module)
            *parents, name = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            original = getattr(owner, name)
            stack.callback(setattr, owner, name, original)
            setattr(owner, name, patch.replacement(original))
        yield
