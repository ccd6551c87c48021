"""Perturbs products that a module computes in its own forward pass: those of routers, and ``bmm`` with stacks.

Such a module returns something else than the product, so a hook on its output comes too late. Its calls of torch are
intercepted instead, and each product with an evolved parameter gets every member's own term.

Legend: M rows, E experts, O out, I in.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from eggroll_rl.es.perturbation import Factors, Members
from eggroll_rl.es.reading import Aliases

PRODUCTS = {"linear", "matmul_T", "__matmul___T", "bmm"}  # names of readings that ``Products`` can perturb


class Products(TorchFunctionMode):
    """A context in which products with these parameters (by canonical name) use the weights of each row's member."""

    def __init__(self, parameters: Mapping[str, Tensor], members: Members):
        super().__init__()
        self._aliases, self._members = Aliases(parameters), members

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if self._aliases.follow(function, args, result) or len(args) < 2:
            return result
        known = self._aliases.find(args[1])
        if known is None:
            return result
        name, transposed = known
        noise, y = self._members.noise[name], result.contiguous()
        if function is torch.bmm and isinstance(noise, Factors):
            add_to_stack_(y, args[0], noise, self._members)
        elif function is F.linear or (transposed and function in (torch.matmul, Tensor.matmul, Tensor.__matmul__)):
            add_rows_(y, args[0], noise, self._members)
        return y


def add_rows_(y: Tensor, x: Tensor, noise: Any, members: Members) -> None:
    """Add each member's own term to y [M * n, ..., O], row-major, in the precision of y."""
    rows = len(members.coefficient_M)
    if y.dtype != members.coefficient_M.dtype:
        noise, members = noise.to(y.dtype), members.to(y.dtype)
    noise.add_product_(y.view(rows, -1, y.shape[-1]), x.reshape(rows, -1, x.shape[-1]), members)


def add_to_stack_(y_EMO: Tensor, x_EMI: Tensor, noise: Factors, members: Members) -> None:
    """Add each member's own term to ``y = bmm(x, W)`` of a stack W [E, I, O], where every expert sees all rows."""
    matrices, experts, rows = noise.mT.of_experts(), len(y_EMO), len(members.coefficient_M)
    expert_E = torch.arange(experts, device=y_EMO.device)
    pair_M = members.pairs_of_rows(len(noise.A_KOr))
    of_experts = members._replace(
        coefficient_M=members.coefficient_M.repeat(experts), pair_M=(pair_M * experts + expert_E[:, None]).flatten()
    )
    y, x = (tensor.reshape(experts * rows, -1, tensor.shape[-1]) for tensor in (y_EMO, x_EMI))
    matrices.add_product_(y, x, of_experts)
