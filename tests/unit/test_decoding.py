"""From logits to tokens to text: whose random numbers decide, and where an answer ends."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import ParametersConfig, PopulationConfig, SamplingConfig
from eggroll_rl.engines.local.choice import Choice, for_any, for_rwkv
from eggroll_rl.engines.local.decoding import Endings, Sampler, greedy, uniform
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.parameters import parameter_id
from eggroll_rl.es.philox import philox4x32
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion
from eggroll_rl.models.loading import load_tokenizer

V, M = 6, 20_000
LOGITS_V = torch.tensor([0.3, -1.0, 2.0, 1.0, -torch.inf, 0.0])
UNLIKELY = 1e-4  # a p-value below which samples do not fit


def draw(
    logits_MV: Tensor, prompt_M: Tensor, position: int = 0, seed: int = 5, generation: int = 0, **how: float
) -> Tensor:
    sampler = Sampler(SamplingConfig(**{"temperature": 1.0, **how}), seed, generation, int(prompt_M.max()) + 1)
    return sampler(logits_MV, torch.empty(len(logits_MV), 0, dtype=torch.long), prompt_M, position)


def nucleus(probability_V: Tensor, top_p: float) -> set[int]:
    """The likeliest tokens, as few as hold ``top_p`` together."""
    kept, mass = set(), 0.0
    for token in sorted(range(V), key=lambda token: -probability_V[token].item()):
        if mass < top_p:
            kept.add(token)
            mass += probability_V[token].item()
    return kept


# The sampler.


def test_uniform_is_elementwise() -> None:
    rows, columns = torch.tensor([[3], [8], [3]]), torch.arange(100)
    table = uniform(11, "sampling", 2, rows, columns)
    assert torch.equal(table[0], table[2])
    assert torch.equal(table[1, 41:42], uniform(11, "sampling", 2, torch.tensor([8]), torch.tensor([41])))
    counter = [torch.tensor(word) for word in (41, 8, parameter_id("sampling") * 2, 2)]
    word = int(philox4x32(counter, (11, 0))[0])
    assert table[1, 41].item() == (word >> 8) / 2**24


def test_uniform_is_uniform_below_one() -> None:
    sample = uniform(1, "sampling", 0, torch.arange(100)[:, None], torch.arange(200)).flatten()
    assert sample.min() >= 0
    assert sample.max() < 1
    assert kstest(sample.numpy(), "uniform").pvalue > 1e-3


def test_without_temperature_the_likeliest_token_is_taken() -> None:
    logits_MV = torch.randn(50, V)
    taken = draw(logits_MV, torch.arange(50), temperature=0.0)
    assert taken.tolist() == [max(range(V), key=row.__getitem__) for row in logits_MV.tolist()]


@pytest.mark.parametrize("vocabulary", [1, 7, 1000, 1024, 3072])
def test_the_likeliest_is_found_by_chunks_and_the_first_of_equals_wins(vocabulary: int) -> None:
    logits_MV = torch.randint(5, (40, vocabulary)).float()
    assert torch.equal(greedy(logits_MV), logits_MV.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("across", ["prompts", "positions"])
def test_tokens_follow_the_softmax(temperature: float, across: str) -> None:
    if across == "prompts":
        taken = draw(LOGITS_V.expand(M, V), torch.arange(M), temperature=temperature)
    else:
        one, prompt = LOGITS_V[None], torch.tensor([3])
        taken = torch.cat([draw(one, prompt, position, temperature=temperature) for position in range(600)])
    expected_V = torch.softmax(LOGITS_V.double() / temperature, 0) * len(taken)
    counts_V = torch.bincount(taken, minlength=V)
    assert counts_V[4] == 0
    possible = [0, 1, 2, 3, 5]
    assert chisquare(counts_V[possible].numpy(), expected_V[possible].numpy()).pvalue > UNLIKELY


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.55, 0.7, 0.9, 0.999])
def test_top_p_keeps_the_likeliest_tokens_and_their_proportions(top_p: float) -> None:
    probability_V = torch.softmax(LOGITS_V.double(), 0)
    kept = sorted(nucleus(probability_V, top_p))
    counts_V = torch.bincount(draw(LOGITS_V.expand(M, V), torch.arange(M), top_p=top_p), minlength=V)
    assert counts_V.nonzero()[:, 0].tolist() == kept
    expected = probability_V[kept] / probability_V[kept].sum() * M
    assert chisquare(counts_V[kept].numpy(), expected.numpy()).pvalue > UNLIKELY or len(kept) == 1


def test_every_row_has_a_nucleus_of_its_own() -> None:
    logits_MV = torch.randn(400, V) * 2
    kept = [nucleus(torch.softmax(row.double(), 0), 0.6) for row in logits_MV]
    for position in range(20):
        taken = draw(logits_MV, torch.arange(400), position, top_p=0.6).tolist()
        assert all(token in nucleus for token, nucleus in zip(taken, kept, strict=True))


def test_a_row_depends_on_seed_generation_prompt_and_position_alone() -> None:
    logits_V = torch.zeros(1000)
    rows = logits_V.expand(64, -1)
    prompt_M = torch.arange(64)
    taken = draw(rows, prompt_M)
    assert torch.equal(draw(rows, prompt_M.flip(0)).flip(0), taken)
    assert torch.equal(draw(rows[:5], prompt_M[40:45]), taken[40:45])
    assert torch.equal(draw(rows, torch.full((64,), 7)), taken[7].expand(64))  # 64 members, one prompt
    others = [
        draw(rows, prompt_M, **other)
        for other in ({"seed": 6}, {"seed": 5 + 2**32}, {"generation": 1}, {"position": 1})
    ]
    for one, two in itertools.combinations([taken, *others], 2):
        assert (one == two).float().mean() < 0.1
    assert len(set(taken.tolist())) > 50


def test_draws_of_neighbouring_positions_and_prompts_are_independent() -> None:
    rows, prompt_M = torch.zeros(M, 4), torch.arange(M)
    here, later = draw(rows, prompt_M, 0), draw(rows, prompt_M, 1)
    for other in (later, here.roll(1)):
        assert chisquare(torch.bincount(4 * here + other, minlength=16).numpy()).pvalue > UNLIKELY


# Sampling through an engine.


@pytest.mark.parametrize(("kind", "architecture"), [(for_any, "llama"), (for_rwkv, "rwkv7")])
def test_members_share_random_numbers(
    new_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    kind: Choice,
    architecture: str,
) -> None:
    engine = LocalEngine(new_model(architecture), tokenizer, seed=1, parameters=ParametersConfig(), choice=kind)
    sampling = SamplingConfig(max_new_tokens=10, temperature=1.0)
    prompts = ["12", "the same prompt", "the same prompt"]

    def answers(generation: int, sigma: float, seed: int = 1) -> list[list[Completion]]:
        return engine.generate(prompts, sampling, Population(seed, generation, PopulationConfig(size=8, sigma=sigma)))

    first, *others = answers(0, sigma=1e-9)
    assert others == [first] * 7
    assert first[1].token_ids != first[2].token_ids  # each prompt of a batch has numbers of its own
    assert answers(0, sigma=1e-9, seed=2)[0] != first != answers(1, sigma=1e-9)[0]
    assert len({row[0].token_ids for row in answers(0, sigma=0.1)}) > 1
    assert engine.generate(prompts, sampling.model_copy(update={"seed": 1})) == [first]  # no member, the same numbers


# Where an answer ends.


def ending(tokenizer: PreTrainedTokenizerFast, text: str, stop: Sequence[str] = ()) -> tuple[int, Completion]:
    """The tokens after which ``text`` ends (all of them at most), and the completion made of these."""
    endings = Endings(tokenizer, 150, [tokenizer.eos_token_id], stop)
    ids = tokenizer(text)["input_ids"]
    first = next((n for n in range(1, len(ids) + 1) if endings.reached(torch.tensor([ids[:n]]))[0]), len(ids))
    return first, endings.completion(ids[:first])


@pytest.mark.parametrize(
    ("text", "stop", "tokens", "kept", "finished"),
    [
        ("ab<end>cd", (), 3, "ab", True),
        ("abcd", (), 4, "abcd", False),
        ("ab</answer>cd", ("</answer>",), 7, "ab</answer>", True),  # tokens </, ans, w, er and >
        ("ab</answer", ("</answer>",), 6, "ab</answer", False),
        ("1: 34 x", ("3",), 4, "1: 3", True),  # inside the token 34
        ("1: 34 x", ("4",), 4, "1: 34", True),
        ("a. b", ("b", ". "), 2, "a. ", True),
        ("xyab", ("xyab", "y"), 2, "xy", True),
        ("x34y", ("34", "3"), 2, "x3", True),  # both at once: the earlier end counts
        ("a<end>b", ("b",), 2, "a", True),
        ("." * 60 + "!", ("." * 50,), 50, "." * 50, True),
    ],
)
def test_an_answer_ends_at_an_end_token_or_after_a_stop_string(
    tokenizer: PreTrainedTokenizerFast, text: str, stop: tuple[str, ...], tokens: int, kept: str, finished: bool
) -> None:
    count, completion = ending(tokenizer, text, stop)
    assert (count, completion.text, completion.finished) == (tokens, kept, finished)
    ids = tokenizer(text)["input_ids"][:tokens]
    assert completion.token_ids == tuple(token for token in ids if token != tokenizer.eos_token_id)


def test_each_row_ends_by_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = ["x. a", "abcd", "ab12", "bb34", "a<end>"]
    ids = [tokenizer(text)["input_ids"] for text in rows]
    tokens_MT = torch.tensor([[tokenizer.convert_tokens_to_ids("z")] * (4 - len(row)) + row for row in ids])
    endings = Endings(tokenizer, 150, [tokenizer.eos_token_id], ("a", "12"))
    assert endings.reached(tokens_MT).tolist() == [True, False, True, False, True]


def test_a_special_token_can_be_a_stop_string(tokenizer: PreTrainedTokenizerFast) -> None:
    endings = Endings(tokenizer, 150, [], ("<end>",))
    ids = tokenizer("ab<end>")["input_ids"]
    assert endings.reached(torch.tensor([ids])).tolist() == [True]
    assert endings.completion(ids) == Completion("ab", tuple(ids[:2]), True)


def wordwise() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens have another text inside a word than alone."""
    words = ["?", *"abcd", *(f"##{part}" for part in ("a", "b", "c", "d", "ab", "cd"))]
    pieces = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="?"))
    pieces.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=pieces, clean_up_tokenization_spaces=False)


KINDS = {"words": wordwise(), "embedded": load_tokenizer("embedded:rwkv7-countdown")}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=2, max_size=8))
    text = tokenizer.decode(ids)
    first = data.draw(st.integers(0, len(text) - 1))
    stop = text[first : data.draw(st.integers(first + 1, min(len(text), first + 12)))]
    if stop not in tokenizer.decode(ids[:-1]):  # else an earlier token did
        assert Endings(tokenizer, len(tokenizer), [], (stop,)).reached(torch.tensor([ids])).item()


def test_stop_strings_whose_characters_are_several_tokens() -> None:
    """Byte-level tokenizers split what they do not know into bytes, none of which is text by itself."""
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(models.BPE(vocabulary, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, clean_up_tokenization_spaces=False)
    endings = Endings(tokenizer, 256, [], ("终",))
    ids = tokenizer("a终b")["input_ids"]
    assert len(ids) == 5
    reached = [endings.reached(torch.tensor([ids[:n]])).item() for n in range(1, 5)]
    assert reached == [False, False, False, True]
    assert endings.completion(ids[:4]) == Completion("a终", tuple(ids[:4]), True)
