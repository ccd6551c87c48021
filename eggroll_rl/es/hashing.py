"""A hash of named tensors, to compare weights and states bit by bit."""

import hashlib
from collections.abc import Mapping

from torch import Tensor

from eggroll_rl.es.tensors import Piece, Spec, bytes_of, streamed


class Digest:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, whose rows are added in the order of the names."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, piece: Piece, spec: Spec, rows: Tensor) -> None:
        """Add the rows of one piece of a tensor."""
        if piece.start == 0:
            self._digest.update(f"{piece.name} {spec.dtype} {spec.shape}\n".encode())
        self._digest.update(bytes_of(rows))

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hexadecimal over names, dtypes, shapes and bytes, in the order of the names."""
    source, digest = streamed(tensors), Digest()
    for piece, rows in source.stream(sorted(source)):
        digest.add(piece, source.specs[piece.name], rows)
        del rows  # before the next are made
    return digest.hexdigest()
