"""Mixture-of-experts layers for a population: a row's expert e has the weights ``W_e + sign * sigma * E_e``.

transformers keeps the experts of a layer in 3-D parameters and calls them with the tokens of all rows, and for each
token its experts and their weights. Here every pair of token and expert is a row of its own: sorted by expert, the base
product is one grouped product; what is each member's own is a product with the factors of (pair, expert).

Legend: M rows, T tokens, S pairs of token and chosen expert, E experts, K pairs of members, O out, I in.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eggroll_rl.es.perturbation import Factors, Members, Perturbation

EXPERT_ATTRIBUTES = ("num_experts", "has_gate", "has_bias", "is_transposed", "_apply_gate")


def is_experts(layer: nn.Module) -> bool:
    """Whether a layer holds stacks of experts in the way of transformers' experts classes."""
    return all(hasattr(layer, name) for name in EXPERT_ATTRIBUTES) and any(
        p.ndim == 3 for p in layer.parameters(recurse=False)
    )


class Chosen(NamedTuple):
    """The pairs of token and expert, sorted by expert."""

    expert_S: Tensor
    ends_E: Tensor  # where each expert's rows end, int32
    members: Members  # the member of each row; its ``pair_M`` is pair of members * E + expert


def experts_forward(
    layer: Any,
    noise: Mapping[str, Perturbation],
    members: Members,
    hidden: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """The experts' output [M * T, O], each row's by its own member.

    Args:
        layer: transformers' module of the experts.
        noise: of the layer's evolved stacks, by attribute.
        members: whose the M rows are.
        hidden: [M * T, I], row-major.
        top_k_index: [M * T, k] int64, the experts of each token.
        top_k_weights: [M * T, k].
    """
    tokens, k = top_k_index.shape
    expert_S, order_S = top_k_index.reshape(-1).sort(stable=True)
    token_S = order_S // k
    chosen = _chosen(expert_S, token_S // (tokens // len(members.coefficient_M)), layer.num_experts, noise, members)
    inner_SO = _product(layer, "gate_up_proj" if layer.has_gate else "up_proj", hidden[token_S], noise, chosen)
    inner_SO = layer._apply_gate(inner_SO) if layer.has_gate else layer.act_fn(inner_SO)
    out_SO = _product(layer, "down_proj", inner_SO, noise, chosen)
    if getattr(layer, "has_post_expert_norm", False):
        out_SO = layer.post_expert_norm(out_SO)
    out_SO = out_SO * top_k_weights.reshape(-1)[order_S, None]
    return torch.empty_like(out_SO).index_copy_(0, order_S, out_SO).view(tokens, k, -1).sum(1).to(hidden.dtype)


def _chosen(
    expert_S: Tensor, row_S: Tensor, experts: int, noise: Mapping[str, Perturbation], members: Members
) -> Chosen:
    pairs = len(next(iter(noise.values())).tensors()[0])
    pair_S = members.pairs_of_rows(pairs)[row_S] * experts + expert_S
    ends_E = torch.searchsorted(expert_S, torch.arange(experts, device=expert_S.device), right=True).int()
    return Chosen(expert_S, ends_E, members._replace(coefficient_M=members.coefficient_M[row_S], pair_M=pair_S))


def _product(layer: Any, name: str, x_SI: Tensor, noise: Mapping[str, Perturbation], chosen: Chosen) -> Tensor:
    weight = getattr(layer, name)
    y_SO = grouped_product(x_SI, weight if layer.is_transposed else weight.mT, chosen.ends_E)
    if layer.has_bias:
        y_SO = y_SO + getattr(layer, f"{name}_bias")[chosen.expert_S]
    drawn = noise.get(name)
    if isinstance(drawn, Factors):
        matrices = drawn.mT.of_experts() if layer.is_transposed else drawn.of_experts()
        matrices.add_product_(y_SO, x_SI, chosen.members)
    return y_SO


def grouped_product(x_SI: Tensor, weight_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """``x W_e``, contiguous [S, O], of rows sorted by expert; ``ends_E`` says where each expert's rows end."""
    if x_SI.device.type == "cuda" and x_SI.dtype == torch.bfloat16 and hasattr(F, "grouped_mm"):
        return F.grouped_mm(x_SI, weight_EIO, offs=ends_E)
    y_SO, start = x_SI.new_empty(len(x_SI), weight_EIO.shape[2]), 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            torch.mm(x_SI[start:end], weight_EIO[expert], out=y_SO[start:end])
        start = end
    return y_SO
