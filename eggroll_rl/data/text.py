"""Text as streams of bytes, for models that learn to foretell it.

The documents lie one after the other, a 0 byte before each. A stream starts somewhere in there and reads T bytes in
each generation; after the end it goes on at the beginning. What it reads is a pure function of the generation.

Legend: S streams, T bytes that are foretold in one generation.
"""

import gzip
import platform
from collections.abc import Iterator
from hashlib import blake2b, sha256
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eggroll_rl.data.sources import read_dataset
from eggroll_rl.system.errors import UsageError

DOCUMENT = b"\0"  # before each document
PYTHON_DOCS = "python-docs"
HELD_OUT = 10  # one byte in ten, the last, is for validation


class Corpus(NamedTuple):
    """Text as bytes.

    Attributes:
        train, validation: uint8 [n], each from the beginning of a document.
        version: name, size and a hash of the text, for people.
        sha256: of all bytes, in hexadecimal.
    """

    train: Tensor
    validation: Tensor
    version: str
    sha256: str


def is_here(name: str) -> bool:
    """Whether the text of that name is on this machine: not a dataset, which may have to be fetched."""
    return name == PYTHON_DOCS or Path(name).expanduser().exists()


def read_corpus(
    name: str = PYTHON_DOCS,
    column: str = "text",
    subset: str | None = None,
    split: str = "train",
    test_split: str | None = None,
) -> Corpus:
    """The text behind a name: the language reference that comes with Python (``python-docs``), a text file, a folder of
    text files, or a column of a Hugging Face dataset.

    Held out is ``test_split`` of a dataset; else the last tenth.

    Raises:
        UsageError: nothing is there, or it is no text.
    """
    if test_split is not None and is_here(name):
        raise UsageError(f"text.test_split={test_split!r} is of datasets, and {name!r} is none; drop it")
    whole = _joined(_documents(name, column, subset, split), name)
    if test_split is None:
        cut = len(whole) - max(1, len(whole) // HELD_OUT)
        held_out = bytearray(DOCUMENT + bytes(whole[cut:]).removeprefix(DOCUMENT))
    else:
        cut, held_out = len(whole), _joined(_documents(name, column, subset, test_split), name)
    version = f"{name}, {len(whole)} bytes, {blake2b(whole, digest_size=8).hexdigest()}"
    if name == PYTHON_DOCS:
        version += f", Python {platform.python_version()}"
    digest = sha256(whole)
    digest.update(held_out)
    return Corpus(_tensor(whole)[:cut], _tensor(held_out), version, digest.hexdigest())


def _joined(documents: Iterator[str], name: str) -> bytearray:
    """The documents that are not empty, a 0 byte before each."""
    whole = bytearray()
    for document in documents:
        piece = document.encode()
        if DOCUMENT in piece:
            raise UsageError(
                f"the corpus {name!r} holds byte 0, which separates documents, so it is no text; remove it"
            )
        if piece:
            whole += DOCUMENT
            whole += piece
    if not whole:
        raise UsageError(f"the corpus {name!r} holds no text; name another, or fill it")
    return whole


def _documents(name: str, column: str, subset: str | None, split: str) -> Iterator[str]:
    path = Path(name).expanduser()
    if name == PYTHON_DOCS:
        from pydoc_data.topics import topics

        yield from (topics[topic] for topic in sorted(topics))
    elif path.is_dir():
        yield from (_read(file) for file in sorted(path.rglob("*")) if file.is_file())
    elif path.is_file():
        yield _read(path)
    elif name.startswith((".", "/", "~")):
        raise UsageError(f"no text file or folder {name!r}; or name {PYTHON_DOCS} or a Hugging Face dataset")
    else:
        for row in read_dataset(name, subset, split):
            if not isinstance(row.get(column), str):
                raise UsageError(f"the dataset {name!r} has no text in column {column!r}; it has {', '.join(row)}")
            yield row[column]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no UTF-8 text (byte {error.start}); convert or remove it") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


class Streams:
    """S streams through a corpus, evenly spread.

    Args:
        text: uint8 [n].
        tokens: T, what each stream reads in a generation.

    Raises:
        UsageError: the corpus is too short to give each stream other bytes in a generation.
    """

    def __init__(self, text: Tensor, streams: int, tokens: int):
        if len(text) < streams * tokens + 1:
            raise UsageError(
                f"{streams} streams of {tokens} bytes need a corpus of {streams * tokens + 1}, and it has {len(text)}: "
                "let more members share a stream (text.group), or give more text"
            )
        self.text, self.tokens = text, tokens
        self.start_S = torch.arange(streams) * len(text) // streams
        self._from = torch.cat([text, text[:tokens]]).unfold(0, tokens + 1, 1)  # [n, T + 1], from each byte on

    def batch(self, generation: int) -> Tensor:
        """The T bytes that each stream reads in this generation, and the one after them: uint8 [S, T + 1]."""
        return self._from[(self.start_S + generation * self.tokens) % len(self.text)]


def unigram_bits(text: Tensor) -> float:
    """Bits per byte of the best model that knows how often each byte is: the entropy of ``text``, uint8 [n]."""
    return _entropy(torch.bincount(text, minlength=256))


def bigram_bits(text: Tensor) -> float:
    """Bits per byte of the best model that knows how often each byte follows each other one."""
    pairs = text[:-1].int() * 256 + text[1:]
    return _entropy(torch.bincount(pairs, minlength=256**2)) - unigram_bits(text[:-1])


def gzip_bits(text: Tensor) -> float:
    """Bits per byte that gzip needs."""
    return 8 * len(gzip.compress(text.numpy().tobytes(), mtime=0)) / len(text)


def _entropy(counts: Tensor) -> float:
    share = counts[counts > 0].double() / counts.sum()
    return -float((share * share.log2()).sum())


def _tensor(data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=torch.uint8)
