"""Matrices of int8 with one scale for each output, ``W = scale * q``, and their products with activations.

q is from -127 to 127, and a scale is what the largest weight of its row was, over 127 (absmax). On a CPU a product is
one of integers: a row of activations becomes two digits of int8 for each number, 15 bits with a unit of the row's own,
so that it is rounded to 1/16256 of its largest. Sums of integers have no order: a row's product depends on no other
row, on no batch and on no number of threads. Elsewhere the matrix is made float for each product.

Legend: M rows, O out, I in.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.native import kernels_or_none

LARGEST_INT8 = 127  # of q
LEAST_SCALE = 1e-12  # of a scale that is no row of zeros
LARGEST_WHOLE = 128 * LARGEST_INT8  # what the largest number of a row of activations becomes


class Quantised(NamedTuple):
    """A matrix: q int8 [O, I] and scale fp32 [O, 1]."""

    q_OI: Tensor
    scale_O1: Tensor

    def dequantised(self) -> Tensor:
        """fp32 [O, I]."""
        return self.q_OI.float() * self.scale_O1


def quantise(weight_OI: Tensor) -> Quantised:
    """The nearest matrix of int8; a row of zeros takes the mean scale of the others, so that it can learn."""
    scale_O1 = weight_OI.detach().float().abs().amax(1, keepdim=True) / LARGEST_INT8
    others = scale_O1[scale_O1 > LEAST_SCALE]
    usual = others.mean() if len(others) else scale_O1.new_tensor(1 / (LARGEST_INT8 * weight_OI.shape[1] ** 0.5))
    scale_O1 = torch.where(scale_O1 > LEAST_SCALE, scale_O1, usual)
    return Quantised((weight_OI.detach().float() / scale_O1).round_().to(torch.int8), scale_O1)


class Int8Linear(nn.Module):
    """A linear layer whose matrix is int8: ``weight`` [O, I] and ``weight_scale`` [O, 1], in the layout of
    compressed-tensors; the bias is float."""

    def __init__(self, matrix: Quantised, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = matrix.q_OI.shape
        self.weight = nn.Parameter(matrix.q_OI, requires_grad=False)
        self.weight_scale = nn.Parameter(matrix.scale_O1, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def matrix(self) -> Quantised:
        return Quantised(self.weight.detach(), self.weight_scale.detach())

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise UsageError("a layer of int8 received integers: the model casts activations to its weights' dtype")
        if x.device.type != "cpu":
            y = F.linear(x, self.weight.to(x.dtype)) * self.weight_scale.to(x.dtype).mT
            return y if self.bias is None else y + self.bias
        x_MI = x.reshape(-1, self.in_features)
        bias = None if self.bias is None else self.bias.detach().float()
        return Product(self.matrix, len(x_MI), bias)(x_MI.float()).to(x.dtype).view(*x.shape[:-1], self.out_features)


class Product:
    """``y = x W^T + bias`` on a CPU for M rows, again and again into the same memory.

    Args:
        matrix: read at each call.
        bias: fp32 [O].

    Attributes:
        y_MO: fp32, of the last call.
    """

    def __init__(self, matrix: Quantised, rows: int, bias: Tensor | None = None):
        out, self._inner = matrix.q_OI.shape
        self._scale_O, self._bias = matrix.scale_O1.flatten(), bias
        # torch takes a column transposed, whose strides are both 1, for something else
        self._q_IO = matrix.q_OI.mT if self._inner > 1 else matrix.q_OI.view(1, out)
        self._rows = rows
        self._digits = torch.empty(2 * rows, self._inner, dtype=torch.int8)
        self._sums = torch.empty(2 * rows, out, dtype=torch.int32)
        self._unit_M = torch.empty(rows)
        self.y_MO = torch.empty(rows, out)

    def __call__(self, x_MI: Tensor) -> Tensor:
        """fp32 [M, I] -> ``y_MO``."""
        library = _library()
        if library is None:
            return self._in_torch(x_MI)
        x_MI = x_MI.contiguous()
        library.split_rows(
            self._rows, self._inner, x_MI.data_ptr(), self._digits.data_ptr(), self._unit_M.data_ptr()
        )  # fmt: skip
        torch._int_mm(self._digits, self._q_IO, out=self._sums)
        library.join_rows(
            self._rows, self.y_MO.shape[1], self._sums.data_ptr(), self._unit_M.data_ptr(), self._scale_O.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(), self.y_MO.data_ptr(),
        )  # fmt: skip
        return self.y_MO

    def _in_torch(self, x_MI: Tensor) -> Tensor:
        largest_M1 = x_MI.abs().amax(1, keepdim=True)
        inverse_M1 = torch.where(largest_M1 > 1e-30, LARGEST_WHOLE / largest_M1, 0.0)
        whole_MI = (x_MI * inverse_M1).round_().int()
        high_MI = whole_MI + 64 >> 7
        digits = torch.cat((high_MI, whole_MI - (high_MI << 7))).to(torch.int8)
        high_MO, low_MO = torch._int_mm(digits, self._q_IO).float().chunk(2)
        torch.mul(high_MO.mul_(128).add_(low_MO), largest_M1 / LARGEST_WHOLE * self._scale_O, out=self.y_MO)
        return self.y_MO if self._bias is None else self.y_MO.add_(self._bias)


@cache
def _library() -> ctypes.CDLL | None:
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    return kernels_or_none(
        Path(__file__).with_suffix(".c"),
        {"split_rows": [size, size, *[pointer] * 3], "join_rows": [size, size, *[pointer] * 5]},
        "products of int8 run in torch, more slowly",
    )
