"""Text as streams of bytes."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll_rl.data.text import Streams, bigram_bits, gzip_bits, read_corpus, unigram_bits
from eggroll_rl.system.errors import UsageError


def as_bytes(text):
    return bytes(text.tolist())


def test_documents_follow_each_other_and_the_last_tenth_is_held_out(tmp_path):
    texts = [f"Document {i}: " + "äb" * 40 for i in range(20)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:02}.txt").write_text(text)
    (tmp_path / "empty.txt").write_text("")
    corpus = read_corpus(str(tmp_path))
    train, validation = as_bytes(corpus.train), as_bytes(corpus.validation)
    whole = b"".join(b"\0" + text.encode() for text in texts)
    cut = len(whole) - len(whole) // 10
    assert (train, validation) == (whole[:cut], b"\0" + whole[cut:].removeprefix(b"\0"))
    assert read_corpus(str(tmp_path)).version == corpus.version
    (tmp_path / "00.txt").write_text("another")
    assert read_corpus(str(tmp_path)).version != corpus.version


def test_the_end_of_a_single_document_is_held_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(1, 101)))
    corpus = read_corpus(str(tmp_path / "a.txt"))
    assert as_bytes(corpus.train) == b"\0" + bytes(range(1, 91))
    assert as_bytes(corpus.validation) == b"\0" + bytes(range(91, 101))


def test_pythons_own_documentation_is_always_there():
    corpus = read_corpus()
    assert "Python 3" in corpus.version and len(corpus.train) > 300_000 and len(corpus.validation) > 20_000
    assert corpus.train[0] == corpus.validation[0] == 0
    assert gzip_bits(corpus.train) < bigram_bits(corpus.train) < unigram_bits(corpus.train) < 8


def test_a_column_of_a_dataset(monkeypatch):
    rows = [{"story": "once", "id": 1}, {"story": "upon a time", "id": 2}]
    monkeypatch.setattr("eggroll_rl.data.text.read_dataset", lambda name, subset, split: rows)
    corpus = read_corpus("some/stories", column="story")
    assert (as_bytes(corpus.train), as_bytes(corpus.validation)) == (b"\0once\0upon a tim", b"\0e")
    with pytest.raises(UsageError, match="no text in column 'text'; it has story, id"):
        read_corpus("some/stories")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no text"), (b"\xff\xfe\x00", "no UTF-8 text"), (b"a\0b", "byte 0")],
)
def test_what_is_no_text_is_refused(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    for name in (tmp_path, tmp_path / "a"):
        with pytest.raises(UsageError, match=message) as error:
            read_corpus(str(name))
        assert "\n" not in str(error.value)


def test_what_is_not_there_is_refused(tmp_path):
    for name in (str(tmp_path / "none"), "./none", "~/none-of-this"):
        with pytest.raises(UsageError, match="no text file"):
            read_corpus(name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="holds no text"):
        read_corpus(str(tmp_path / "folder"))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 50), st.integers(0, 10**6))
def test_streams_read_on_and_on(streams, tokens, spare, generation):
    text = torch.randint(256, (streams * tokens + 1 + spare,)).to(torch.uint8)
    source = Streams(text, streams, tokens)
    now, later = source.batch(generation), source.batch(generation + 1)
    assert now.shape == (streams, tokens + 1) and now.dtype == torch.uint8
    assert torch.equal(now[:, -1], later[:, 0])
    start = [s * len(text) // streams for s in range(streams)]
    expected = [
        [int(text[(begin + generation * tokens + t) % len(text)]) for t in range(tokens + 1)] for begin in start
    ]
    assert now.tolist() == expected
    places = torch.arange(len(text)).to(torch.uint8) if len(text) < 256 else None
    if places is not None:
        read = Streams(places, streams, tokens).batch(generation)[:, :-1].flatten().tolist()
        assert len(set(read)) == streams * tokens, "each stream has other bytes"


def test_a_short_corpus_is_refused():
    with pytest.raises(UsageError, match="4 streams of 10 bytes need a corpus of 41, and it has 40"):
        Streams(torch.zeros(40, dtype=torch.uint8), 4, 10)


@settings(deadline=None)
@given(st.binary(min_size=2, max_size=60))
def test_yardsticks_are_the_entropies(data):
    text = torch.tensor(list(data), dtype=torch.uint8)
    share = [count / len(data) for count in Counter(data).values()]
    assert unigram_bits(text) == pytest.approx(-sum(p * math.log2(p) for p in share), abs=1e-9)
    pairs = Counter(pairwise(data))
    before = Counter(data[:-1])
    bits = -sum(n * math.log2(n / before[a]) for (a, _), n in pairs.items()) / (len(data) - 1)
    assert bigram_bits(text) == pytest.approx(bits, abs=1e-9)
