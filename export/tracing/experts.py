"""Experts without loops over those that data chooses: all of them, weighted, on every token."""

from __future__ import annotations

from typing import Any


def all_experts(_: Any) -> Any:
    """DBRX's experts: all on every token, those not chosen with weight 0."""

    def forward(self: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        import torch

        tokens = hidden_states.reshape(-1, self.hidden_size)
        weights = torch.zeros_like(tokens[:, :1]).expand(-1, self.num_experts)
        weights = weights.scatter(1, top_k_index, top_k_weights.to(tokens.dtype))
        shape = (self.num_experts, self.ffn_hidden_size, self.hidden_size)
        gate, up, down = (one.view(shape) for one in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
        inner = self.mlp.activation_fn(tokens @ gate.mT) * (tokens @ up.mT)
        output = ((inner @ down) * weights.T[:, :, None]).sum(0)
        return output.view(hidden_states.shape[0], -1, self.hidden_size)

    return forward


def one_of_all(_: Any) -> Any:
    """Switch's experts: all on every token, the one chosen with the router's weight."""

    def forward(self: Any, hidden_states: Any, selected: Any, routing_weights: Any) -> Any:
        # selected: [tokens, 1, experts], 0 or 1; routing_weights: [tokens, 1]
        weights = selected[:, 0] * routing_weights
        return _weighted(self, hidden_states, weights)

    return forward


def masked_of_all(_: Any) -> Any:
    """NLLB-MoE's experts: all on every token, with the weights its mask gives them."""

    def forward(self: Any, hidden_states: Any, router_mask: Any, router_probs: Any) -> Any:
        import torch

        # The mask's values, 0 and 1, are read as the experts' numbers, as the original reads them.
        numbers = torch.arange(self.num_experts, device=router_mask.device)
        chosen = router_mask[..., None] == numbers  # [tokens, experts, experts]
        weights = (chosen * router_probs[..., None]).sum(1)
        return _weighted(self, hidden_states, weights * (1 - self.moe_token_dropout))

    return forward


def _weighted(experts: Any, hidden_states: Any, weights: Any) -> Any:
    """``sum(weights[:, e] * expert_e(hidden_states))``; weights: ``[tokens, experts]``."""
    outputs = (
        experts[f"expert_{index}"](hidden_states) * weights[:, index, None]
        for index in range(experts.num_experts)
    )
    return sum(output.to(hidden_states.dtype) for output in outputs)


def routed_as_cast(_: Any) -> Any:
    """Switch's router, with its classifier's weights cast where they are used."""

    def forward(self: Any, hidden_states: Any) -> tuple[Any, Any, Any]:
        import torch

        linear = self.classifier
        bias = None if linear.bias is None else linear.bias.to(self.dtype)
        logits = torch.nn.functional.linear(
            hidden_states.to(self.dtype), linear.weight.to(self.dtype), bias
        )
        weights = logits.softmax(-1).to(hidden_states.dtype)
        chosen = torch.nn.functional.one_hot(weights.argmax(-1), self.num_experts)
        # In the order of the text: an expert takes no more than its capacity.
        chosen = chosen * (chosen.cumsum(-2) <= self.expert_capacity)
        return chosen, weights.amax(-1, keepdim=True), logits

    return forward


def uncast(_: Any) -> Any:
    """NLLB-MoE's classifier as it is: running the examples has cast it already."""

    def leave(self: Any) -> None:
        return None

    return leave
