"""Tensors in pieces: whatever they are, and however large a shard, what is written comes back and has the same hash."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from eggroll_rl.es import tensors as tensors_module
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.tensor_file import DTYPES, TensorFile, write_hashed
from eggroll_rl.es.tensors import Chosen, Piece, Spec, aligned, named, shards

LIMITS = st.integers(1, 400)
NAMES = st.text('ab.é"\\\n', min_size=1, max_size=4)


@st.composite
def some_tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    found = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=6)):
        shape = draw(st.lists(st.integers(0, 9), max_size=3))
        values = torch.arange(torch.Size(shape).numel() * 8, dtype=torch.uint8).reshape(-1, 8)
        dtype = draw(st.sampled_from(list(DTYPES.values())))
        raw = (values * 37 + len(found))[:, : dtype.itemsize].contiguous()
        tensor = (raw % 2 if dtype == torch.bool else raw).reshape(-1).view(dtype).reshape(shape)
        found[name] = tensor.mT if draw(st.booleans()) and tensor.ndim > 1 else tensor
    return found


def whole_hash(tensors: dict[str, Tensor]) -> str:
    """The definition, of tensors taken whole."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@given(some_tensors(), LIMITS)
def test_shards_have_all_rows_in_order_and_are_no_larger_than_allowed(tensors: dict[str, Tensor], limit: int) -> None:
    specs = {name: Spec.of(tensor) for name, tensor in tensors.items()}
    every = list(shards(specs, tensors, limit))
    for shard in every:
        sizes = [aligned(size) for piece in shard if (size := piece.nbytes(specs[piece.name]))]
        assert sum(sizes) < limit + 8 or len(sizes) == 1
        assert all(piece.nbytes(specs[piece.name]) <= limit or piece.stop - piece.start == 1 for piece in shard)
    seen = {name: [piece for shard in every for piece in shard if piece.name == name] for name in tensors}
    assert [piece.name for shard in every for piece in shard if piece.start == 0] == list(tensors)
    for name, pieces in seen.items():
        assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
        assert pieces[-1].stop == specs[name].rows


@settings(deadline=None)
@given(some_tensors(), LIMITS)
def test_any_tensors_come_back_with_their_hash(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors_module, "SHARD", limit)
        assert tensors_hash(tensors) == whole_hash(tensors)
        write_hashed(folder / "ours", tensors, {"generation": "3"}, "sha256")
        file = TensorFile(folder / "ours")
        assert file.metadata == {"generation": "3", "sha256": whole_hash(tensors)}
        assert tensors_hash(file) == whole_hash(tensors)
        more = {"b": torch.ones(3)}
        renamed = Chosen(named(file, "a ") | named(more))
        assert tensors_hash(renamed) == whole_hash({f"a {name}": tensor for name, tensor in tensors.items()} | more)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "theirs")
    theirs = load_file(folder / "theirs")
    for found in (load_file(folder / "ours"), file):
        assert found.keys() == theirs.keys()
        assert whole_hash(dict(found)) == whole_hash(theirs)
    assert (folder / "ours").stat().st_size % 8 == (folder / "theirs").stat().st_size % 8


def test_a_row_beyond_the_limit_is_a_shard_of_its_own() -> None:
    specs = {"a": Spec(torch.float32, ()), "b": Spec(torch.float32, (3, 8)), "c": Spec(torch.float32, (2,))}
    assert list(shards(specs, "abc", 16)) == [
        [Piece("a", 0, 1)],
        *([Piece("b", row, row + 1)] for row in range(3)),
        [Piece("c", 0, 2)],
    ]
