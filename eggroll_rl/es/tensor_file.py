"""Safetensors files that are written and read in pieces."""

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from eggroll_rl.es.hashing import Digest
from eggroll_rl.es.tensors import Piece, Spec, Tensors, bytes_of, streamed

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
UNKNOWN = "0" * 64  # a hash that is not known yet


class TensorFile(Tensors):
    """The tensors of a safetensors file, which is mapped: what is read stays in the system's cache of files.

    Raises:
        SafetensorError, OSError: it is none, is truncated or cannot be read.
    """

    def __init__(self, path: Path):
        with safe_open(path, framework="pt"):
            pass  # which checks that header and size fit
        with path.open("rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(begin - 8))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # nothing is written, so nothing is copied
        self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.specs = {name: Spec(DTYPES[facts["dtype"]], tuple(facts["shape"])) for name, facts in header.items()}
        self._offsets = {name: begin + facts["data_offsets"][0] for name, facts in header.items()}

    def read(self, shard: Sequence[Piece]) -> Iterator[Tensor]:
        for piece in shard:
            spec = self.specs[piece.name]
            begin = self._offsets[piece.name] + piece.start * spec.row_bytes
            values = self._bytes[begin : begin + piece.nbytes(spec)]
            is_aligned = begin % spec.dtype.itemsize == 0
            yield (values if is_aligned else values.clone()).view(spec.dtype).view(piece.shape(spec))


def write_hashed(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], key: str) -> None:
    """Write a safetensors file, with the ``tensors_hash`` of its tensors as ``key`` of the metadata. Each value is read
    once, and no more than a shard of them is in memory.

    Raises:
        OSError: the disk is full or refuses.
    """
    source, digest = streamed(tensors), Digest()
    header, offsets = _header(source.specs, {**metadata, key: UNKNOWN})
    with path.open("wb") as file:
        file.write(header)
        for piece, rows in source.stream(sorted(source)):
            spec = source.specs[piece.name]
            digest.add(piece, spec, rows)
            file.seek(offsets[piece.name] + piece.start * spec.row_bytes)
            file.write(bytes_of(rows))
            del rows  # before the next are made
        file.seek(0)
        file.write(_header(source.specs, {**metadata, key: digest.hexdigest()})[0])


def _header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """What a file begins with, and where in it each tensor begins: those of the largest elements first, so that all are
    aligned."""
    described: dict[str, object] = {"__metadata__": dict(metadata)}
    offsets, end = {}, 0
    for name, spec in sorted(specs.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        offsets[name], end = end, end + spec.nbytes
        span = [offsets[name], end]
        described[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": span}
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: begin + offset for name, offset in offsets.items()}
