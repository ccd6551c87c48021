"""Text to foretell as what a run learns from: each member is judged by the likelihood of what it reads.

Legend: N members, S streams, T bytes foretold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from eggroll_rl.config import Recipe, SamplingConfig
from eggroll_rl.data.text import Corpus, Streams, bigram_bits, gzip_bits, read_corpus, unigram_bits
from eggroll_rl.engines.base import Engine
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Foretold, Saturation
from eggroll_rl.runs.clock import Stopwatch
from eggroll_rl.runs.objective import Judged, Objective

COUNTED = 2**26  # bytes of a text from which its yardsticks are


@dataclass(frozen=True)
class TextMeasure:
    """How well the model foretells ``streams`` streams of held-out text, each from the state before a document.

    Attributes:
        bits: per byte.
        yardsticks: bits per byte of the text that is learned from, for who knows how often each of its bytes is
            (``unigram``), who also knows the byte before it (``bigram``), and for ``gzip``.
        saturation: of a model of integers, where it reads that text.
        sample: what the model makes up.
        corpus: which text it is.
    """

    title: ClassVar[str] = "held-out bits per byte"
    bits: float
    streams: int
    yardsticks: Mapping[str, float]
    saturation: Saturation
    sample: str
    corpus: str

    def record(self) -> dict[str, Any]:
        return {
            "bits_per_byte": self.bits,
            "n": self.streams,
            "yardsticks": dict(self.yardsticks),
            "saturation": self.saturation._asdict(),
            "corpus": self.corpus,
            "answers": [{"prompt": "", "completion": self.sample, "correct": None}],
        }

    def __str__(self) -> str:
        known = ", ".join(f"{name} {bits:.2f}" for name, bits in self.yardsticks.items())
        return f"{self.bits:.3f} ({known})"


class Text(Objective):
    """Streams of text, and where each member is in its own: a member's state is kept from generation to generation,
    although its noise is not.

    Raises:
        UsageError: the text is shorter than the streams need.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus):
        text = recipe.text
        assert text is not None
        self.corpus, self.tokens = corpus, text.tokens
        self.streams = Streams(corpus.train, recipe.population.size // text.group, text.tokens)
        most = max(1, (len(corpus.validation) - 1) // text.tokens)
        self.held_out_ST = Streams(corpus.validation, min(recipe.evaluation.n, most), text.tokens).batch(0)
        self.writing = SamplingConfig(max_new_tokens=text.sample, temperature=1.0)
        kinds = {"unigram": unigram_bits, "bigram": bigram_bits, "gzip": gzip_bits}
        self.yardsticks = {name: bits_of(corpus.train[:COUNTED]) for name, bits_of in kinds.items()}
        self.state: Tensor | None = None  # of all members; None: before the first generation

    def judge(self, engine: Engine, population: Population, clock: Stopwatch) -> Judged:
        bits_N = self._read(engine, population).bits
        clock.note("read")
        per_byte_N = -bits_N / self.tokens
        facts = {
            "bits_per_byte": float(per_byte_N.mean()),
            "bits_per_byte_best_member": float(per_byte_N.min()),
            "tokens": population.size * self.tokens,
        }
        return Judged(bits_N[:, None], facts, [])

    def measure(self, engine: Engine) -> TextMeasure:
        bits = -float(engine.read(self.held_out_ST).bits.sum()) / (len(self.held_out_ST) * self.tokens)
        sample = engine.generate([""], self.writing)[0][0].text
        saturation, streams = engine.saturation(self.held_out_ST), len(self.held_out_ST)
        return TextMeasure(bits, streams, self.yardsticks, saturation, sample, self.corpus.version)

    def fingerprint(self) -> str:
        return self.corpus.sha256

    def follow(self, engine: Engine, population: Population) -> None:
        self._read(engine, population)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.state is None else {"state": self.state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.state = state.get("state")

    def _read(self, engine: Engine, population: Population) -> Foretold:
        reading = engine.read(self.streams.batch(population.generation), self.state, population)
        self.state = reading.state
        return reading


def text_of(recipe: Recipe) -> Text:
    """The recipe's text, read.

    Raises:
        UsageError: there is none, it is no text, or it is too short.
    """
    assert recipe.text is not None
    values = recipe.text
    return Text(recipe, read_corpus(values.name, values.column, values.subset, values.split, values.test_split))
