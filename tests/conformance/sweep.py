"""What this toolkit does with each causal architecture: ``PYTHONPATH=tests python -m conformance.sweep`` writes
docs/architectures.md anew.

A small model of each kind answers as itself and as a population of four; the answers are compared with ordinary forward
passes of materialised weights, which read everything again for every token. Then it takes a step, whose every number is
compared with the formula, and is saved and loaded.
"""

import itertools
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from conformance.small import KINDS, cannot_be_small, small_model
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import OptimizerConfig, ParametersConfig, PopulationConfig, SamplingConfig
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.layers import materialized_state
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.models.blueprint import dissect
from eggroll_rl.models.loading import empty_model, load_model
from eggroll_rl.system.errors import UsageError

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
PROMPTS = ("a", "12 + 34 =", "hello there")
TOKENS, SEED, LR = 6, 3, 0.01
ENDS = [1, *range(2, 150, 7)]  # so many end tokens that answers end at all lengths
POPULATION = PopulationConfig(size=4, sigma=0.05)
WEIGHTS = (1.3, -0.2, 0.4, -1.5)
CLOSE = 1e-3  # two logits this near may change places by rounding


class Row(NamedTuple):
    """One architecture: the share of its weights that evolves, and what happens to it."""

    kind: str
    share: str
    verdict: str


class Differs(Exception):
    """An answer is another one than the materialised model's."""


def sweep(kind: str, tokenizer: PreTrainedTokenizerFast) -> Row:
    """Put one architecture through everything.

    Raises:
        AssertionError: an answer, a step or a saved model is not as it should be.
    """
    if reason := cannot_be_small(kind):
        return Row(kind, "", f"not built small ({reason})")
    try:
        model = _loaded(small_model(kind), tokenizer)
        parameters = _perturbable(model)
        engine = LocalEngine(
            model, tokenizer, seed=SEED, population=POPULATION, parameters=parameters,
            optimizer=OptimizerConfig(name="sgd"),
        )  # fmt: skip
        total = sum(parameter.numel() for parameter in model.parameters())
        _check_answers(engine, small_model(kind), tokenizer)
    except UsageError as error:
        return Row(kind, "", f"refused: {_reason(str(error))}")
    except Differs:
        return Row(kind, "", "differs: do not use it")
    _check_step(engine)
    _check_saved(engine)
    frozen = [glob for glob in parameters.frozen if glob not in ParametersConfig().frozen]
    share = f"{sum(parameter.numel for parameter in engine.evolved) / total:.0%}"
    return Row(kind, share, "agrees" + (f", frozen: {', '.join(f'`{glob}`' for glob in frozen)}" if frozen else ""))


def _loaded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        model.generation_config.eos_token_id = ENDS
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        empty_model(folder)
        return load_model(folder)[0]


def _perturbable(model: PreTrainedModel) -> ParametersConfig:
    """The recipe's lists: the usual ones, or those that the refusal of these asks for."""
    try:
        dissect(model, ParametersConfig()).check_perturbable()
    except UsageError as error:
        found = re.search(r"'parameters\.frozen=(\[.*?\])'", str(error))
        if found is None:
            raise
        parameters = ParametersConfig(frozen=tuple(json.loads(found[1])))
        dissect(model, parameters).check_perturbable()
        return parameters
    return ParametersConfig()


@torch.inference_mode()
def _check_answers(engine: LocalEngine, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    population, sampling = Population(SEED, 0, POPULATION), SamplingConfig(max_new_tokens=TOKENS)
    weights = dict(model.named_parameters())
    everyone = [*engine.generate(PROMPTS, sampling), *engine.generate(PROMPTS, sampling, population)]
    for member, answers in enumerate(everyone, start=-1):
        state = materialized_state(weights, engine.evolved, engine.noise, population, member) if member >= 0 else {}
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            expected, clear = _alone(model, tokenizer(prompt)["input_ids"], state)
            given = list(answer.token_ids)
            if given != expected and given != _generated(model, tokenizer(prompt)["input_ids"], state):
                pairs = itertools.zip_longest(given, expected)
                place = next(place for place, (one, other) in enumerate(pairs) if one != other)
                if clear[place] >= CLOSE:
                    raise Differs(f"member {member}, {prompt!r}, token {place}: {given} and not {expected}")


def _alone(model: PreTrainedModel, ids: Sequence[int], state: dict[str, Any]) -> tuple[list[int], list[float]]:
    """A greedy answer, everything read again for each token, and how clear each token was."""
    made: list[int] = []
    clear = []
    while len(made) < TOKENS and not (made and made[-1] in ENDS):
        row = torch.tensor([[*ids, *made]])
        logits = functional_call(model, state, (row,), {"use_cache": False}).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        clear.append(first - second)
        made.append(int(logits.argmax()))
    return [token for token in made if token not in ENDS], clear


def _generated(model: PreTrainedModel, ids: Sequence[int], state: dict[str, Any]) -> list[int]:
    """transformers' own greedy answer, which with some architectures is another one with a cache than without."""
    named = dict(model.named_parameters())
    kept = {name: named[name].clone() for name in state}
    row = torch.tensor([ids])
    try:
        for name, tensor in state.items():
            named[name].copy_(tensor)
        model.generation_config.eos_token_id = ENDS
        made = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=TOKENS, do_sample=False)
    finally:
        for name, tensor in kept.items():
            named[name].copy_(tensor)
    return [token for token in made[0, len(ids) :].tolist() if token not in ENDS]


def _reason(message: str) -> str:
    """A refusal without the names of folders and the values in brackets."""
    return re.split(r" \(|: frozen|;", re.sub(r"^'/[^']*':? ", "", message))[0].strip()


@torch.no_grad()
def _check_step(engine: LocalEngine) -> None:
    population, named = Population(SEED, 1, POPULATION), dict(engine.model.named_parameters())
    before = {name: parameter.clone() for name, parameter in named.items()}
    zero = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    offsets = [materialized_state(zero, engine.evolved, engine.noise, population, member) for member in range(4)]
    engine.apply(Update(population, WEIGHTS, LR))
    for name, parameter in named.items():
        if name not in offsets[0]:
            assert torch.equal(parameter, before[name]), f"{name} does not evolve, and moved"
            continue
        total = sum(w * offset[name].double() for w, offset in zip(WEIGHTS, offsets, strict=True))
        expected = LR * total / (POPULATION.size * POPULATION.sigma**2)
        error = (parameter.double() - before[name].double() - expected).abs().max()
        assert error < 1e-6 * (1 + before[name].abs().max()), f"{name}: the step is off by {error}"


def _check_saved(engine: LocalEngine) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine.save(Path(folder))
        loaded = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
    for name, parameter in engine.model.named_parameters():
        assert torch.equal(loaded[name], parameter), f"{name} is another one when it is loaded"


def page(rows: Sequence[Row]) -> str:
    """docs/architectures.md of these rows."""
    built = [row for row in rows if not row.verdict.startswith("not built")]
    agree = sum(row.verdict.startswith("agrees") for row in built)
    version = transformers.__version__
    table = "\n".join(f"| {row.kind} | {row.share} | {row.verdict} |" for row in built)
    others = ", ".join(row.kind for row in rows if row not in built)
    return f"""# Architectures

Of the causal language models of transformers {version} that can be built small, {agree} of {len(built)} agree.

*Agrees* means: base and members answer, token by token, as ordinary forward passes of materialised weights do, with
prompts of different lengths and answers that end at different lengths; a step changes each weight by its formula, and
nothing else; the saved model loads as it was. Where `parameters.frozen` must be longer than usual, the run is refused
at once with the override that is shown here as *frozen*. The share is that of all the small model's weights, of which
embeddings are a larger part than usual. Where transformers answers otherwise with a cache than without, either is
right.

| architecture | share that evolves | verdict |
|---|---|---|
{table}

Not built small, and not tried: {others}.
"""


if __name__ == "__main__":
    from conftest import build_tokenizer

    transformers.logging.set_verbosity_error()
    PAGE.write_text(page([sweep(kind, build_tokenizer()) for kind in KINDS]))
