"""Where a checkpoint's matrices are in vLLM's layers: fused with others, and divided among tensor-parallel ranks.

vLLM keeps q, k and v in one layer, and gate and up in another; a rank has some of the rows of these, some of the
columns of what follows them, and copies of key and value heads that are fewer than the ranks.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from eggroll_rl.es.int8 import Quantised
from eggroll_rl.es.parameters import EvolvedParameter


class Region(NamedTuple):
    """The part of a matrix that this rank's layer holds.

    Attributes:
        row, column: where it begins in the matrix.
        shape: (rows, columns).
        place: its first row in the layer's fused weight.
    """

    row: int
    column: int
    shape: tuple[int, int]
    place: int = 0

    def of(self, parameter: EvolvedParameter) -> EvolvedParameter:
        """This part of ``parameter``."""
        return EvolvedParameter(parameter.name, self.shape, parameter.kind, (self.row, self.column))


class Unplaced(ValueError):
    """A matrix of the checkpoint is not in vLLM's layer in a way that is known."""


Shapes = Sequence[tuple[int, int]]


def regions(layer: Any, shapes: Shapes) -> list[Region]:
    """The parts that one of vLLM's layers holds of the matrices, shapes (out, in) each, that are fused in it.

    Raises:
        Unplaced: the layer holds something else.
    """
    kind = next((base.__name__ for base in type(layer).__mro__ if base.__name__ in _KINDS), None)
    if kind is None:
        raise Unplaced(f"in a {type(layer).__name__}")
    found = _KINDS[kind](layer, shapes)
    ends = [(region.row + region.shape[0], region.column + region.shape[1]) for region in found]
    if len(ends) != len(shapes) or any(e[0] > s[0] or e[1] > s[1] for e, s in zip(ends, shapes, strict=True)):
        raise Unplaced(f"of {' and '.join(map(str, shapes))} in a {type(layer).__name__} of other parts")
    return found


def _replicated(layer: Any, shapes: Shapes) -> list[Region]:
    return [Region(0, 0, shape) for shape in shapes]


def _row_parallel(layer: Any, shapes: Shapes) -> list[Region]:
    columns = layer.input_size_per_partition
    return [Region(0, layer.tp_rank * columns, (rows, columns)) for rows, _ in shapes]


def _head(layer: Any, shapes: Shapes) -> list[Region]:
    start, stop = layer.shard_indices.org_vocab_start_index, layer.shard_indices.org_vocab_end_index
    return [Region(start, 0, (stop - start, columns)) for _, columns in shapes]


def _column_parallel(layer: Any, shapes: Shapes) -> list[Region]:
    return _stacked([(layer.output_size_per_partition, layer.tp_rank)], layer, shapes)


def _merged(layer: Any, shapes: Shapes) -> list[Region]:
    return _stacked([(size // layer.tp_size, layer.tp_rank) for size in layer.output_sizes], layer, shapes)


def _qkv(layer: Any, shapes: Shapes) -> list[Region]:
    shared = layer.tp_rank // layer.num_kv_head_replicas
    query, key = layer.num_heads * layer.head_size, layer.num_kv_heads * layer.head_size
    value = layer.num_kv_heads * layer.v_head_size
    return _stacked([(query, layer.tp_rank), (key, shared), (value, shared)], layer, shapes)


def _stacked(shares: list[tuple[int, int]], layer: Any, shapes: Shapes) -> list[Region]:
    """Parts one above the other, given as (rows, how many such parts of the matrix come before)."""
    if len(shapes) == 1 and layer.tp_size == 1:  # the checkpoint has them fused as well
        shares = [(sum(rows for rows, _ in shares), 0)]
    places = [sum(rows for rows, _ in shares[:index]) for index in range(len(shares))]
    columns = layer.input_size_per_partition
    return [Region(n * rows, 0, (rows, columns), place) for (rows, n), place in zip(shares, places, strict=True)]


_KINDS = {
    "QKVParallelLinear": _qkv,
    "MergedColumnParallelLinear": _merged,
    "ColumnParallelLinear": _column_parallel,
    "RowParallelLinear": _row_parallel,
    "ReplicatedLinear": _replicated,
    "ParallelLMHead": _head,
}


def served_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """vLLM's name of a parameter -> the checkpoint's name, for a model of vLLM's or its class."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return {served: name for name in names for served in (mapper.apply_list([name]) if mapper else [name])}


class Checkpoint:
    """The safetensors files of a Hugging Face folder; tensors are read in parts."""

    def __init__(self, folder: Path):
        self.files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a matrix."""
        with safe_open(self.files[name], framework="pt") as file:
            rows, columns = file.get_slice(name).get_shape()
        return rows, columns

    def read(self, name: str, row: int, column: int, shape: tuple[int, int]) -> Tensor:
        """A part of a matrix, as it is stored."""
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_slice(name)[row : row + shape[0], column : column + shape[1]]

    def is_int8(self, name: str) -> bool:
        """Whether a matrix has scales."""
        return f"{name}_scale" in self.files

    def int8(self, name: str) -> Quantised:
        """A matrix of int8, whole."""
        (rows, columns), scale = self.shape(name), f"{name}_scale"
        return Quantised(self.read(name, 0, 0, (rows, columns)), self.read(scale, 0, 0, (rows, 1)))


Place = Sequence[int]  # row and column where a part begins, its rows and its columns


def cut(state: Mapping[str, Tensor], places: Mapping[str, Place]) -> dict[str, Tensor]:
    """A learner's state (``kind.name`` -> tensor) reduced to one rank's parts of the matrices."""
    return {key: _part(whole, places[_name(key, places)]).clone() for key, whole in state.items()}


def join(
    ranks: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Place]]], evolved: Sequence[EvolvedParameter]
) -> dict[str, Tensor]:
    """The inverse over all ranks; keys are ``kind.name``, or names alone."""
    shapes, whole = {parameter.name: parameter.shape for parameter in evolved}, {}
    for state, places in ranks:
        for key, tensor in state.items():
            name = _name(key, places)
            if tensor.ndim != 2 or tuple(places[name]) == (0, 0, *shapes[name]):  # it is whole, or goes with the matrix
                whole[key] = tensor
                continue
            if key not in whole:
                whole[key] = torch.empty(shapes[name], dtype=tensor.dtype)
            _part(whole[key], places[name]).copy_(tensor)
    return whole


def _name(key: str, names: Mapping[str, Any]) -> str:
    return key if key in names else key.partition(".")[2]


def _part(whole: Tensor, place: Place) -> Tensor:
    """A view of a matrix's part; a number that goes with the matrix is returned whole."""
    row, column, rows, columns = place
    return whole[row : row + rows, column : column + columns] if whole.ndim == 2 else whole
