"""Asking a model in a terminal: what is shown is what the engine answers, and nothing of it is obeyed."""

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import eggroll
from e2e.test_cli import desk
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.ask import ask
from eggroll_rl.config import SamplingConfig
from eggroll_rl.engines.local.choice import Choice, for_any, for_rwkv
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.rollout import Prompt
from eggroll_rl.models.loading import load_model
from eggroll_rl.runs.rebuild import export
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.terminal import harmless


class Typed(io.StringIO):
    """Lines that a person types."""

    def isatty(self) -> bool:
        return True


def answer(model: Path | str, prompt: Prompt, **sampling: Any) -> str:
    """What a model says, by the engine alone."""
    engine = LocalEngine(*load_model(str(model)))
    return harmless(engine.generate([prompt], SamplingConfig(max_new_tokens=6, **sampling))[0][0].text)


def said(*arguments: Any, source: str = "", typed: bool = False, **options: Any) -> str:
    output = io.StringIO()
    ask(*arguments, output=output, source=(Typed if typed else io.StringIO)(source), **options)
    return output.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Path:
    folder = desk(tmp_path_factory.mktemp("asked"), model_folder("llama"))
    outcome = eggroll(folder, "train", "recipe.yaml", "data.prompt='{prompt}!'", "sampling.repetition_penalty=1.2")
    assert outcome.code == 0, outcome.err
    return folder / "runs" / "first"


@pytest.mark.parametrize(("kind", "architecture"), [(for_any, "llama"), (for_any, "gpt2"), (for_rwkv, "rwkv7")])
def test_a_stream_ends_with_the_answer_and_grows_token_by_token(
    kind: Choice, architecture: str, new_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = LocalEngine(new_model(architecture), tokenizer, choice=kind)
    for sampling in (
        SamplingConfig(max_new_tokens=20, stop=("a", "12")),
        SamplingConfig(max_new_tokens=20, temperature=1.3, top_k=9, repetition_penalty=1.2, seed=5),
        SamplingConfig(max_new_tokens=1),
    ):
        grown = list(engine.stream("12 + 34 =", sampling))
        assert grown[-1] == engine.generate(["12 + 34 ="], sampling)[0][0]
        assert len(grown) in (len(grown[-1].token_ids), len(grown[-1].token_ids) + 1)  # an end token is no part of it
        assert all(len(last.token_ids) >= len(first.token_ids) for first, last in itertools.pairwise(grown))


def test_a_run_is_asked_by_its_template_and_sampling(run: Path, tmp_path: Path) -> None:
    options = {"repetition_penalty": 1.2}
    now = answer(run / "model", "7 + 8 =!", **options)
    assert said(str(run), "7 + 8 =") == f"{now}\n"
    first = tmp_path / "generation1"
    export(run, first, 1)
    assert said(str(run), "7 + 8 =", generation=1) == f"{answer(first, '7 + 8 =!', **options)}\n"
    assert not list(run.glob(".*.tmp"))
    other = answer(run / "model", "7 + 8 =!", temperature=1.5, seed=3, **options)
    assert said(str(run), "7 + 8 =", ["sampling.temperature=1.5", "sampling.seed=3"]) == f"{other}\n"


def test_the_base_stands_beside_it(run: Path, model_folder: Callable[[str], Path]) -> None:
    base, now = (answer(model, "7 + 8 =!", repetition_penalty=1.2) for model in (model_folder("llama"), run / "model"))
    assert said(str(run), "7 + 8 =", base=True) == f"--- base\n{base}\n--- run\n{now}\n"
    assert said(str(run), "7 + 8 =", base=True, generation=0) == f"--- base\n{base}\n--- generation 0\n{base}\n"


def test_lines_of_a_pipe_are_questions(run: Path) -> None:
    answers = [answer(run / "model", f"{text}!", repetition_penalty=1.2) for text in ("7 + 8 =", "1 + 2 =")]
    for question in (None, "-"):
        assert said(str(run), question, source="7 + 8 =\n\n1 + 2 =") == "".join(f"{text}\n" for text in answers)


def test_a_chat_goes_on_from_what_was_said(model_folder: Callable[[str], Path]) -> None:
    model, changes = model_folder("llama"), ["sampling.max_new_tokens=6", "data.system=be brief"]
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "12?"}]
    first = answer(model, chat)
    chat += [{"role": "assistant", "content": first}, {"role": "user", "content": "34?"}]
    expected = f"> {first}\n> {answer(model, chat)}\n> "
    assert said(str(model), None, changes, source="12?\n34?\n", typed=True) == expected
    alone = [answer(model, [chat[0], {"role": "user", "content": text}]) for text in ("12?", "34?")]
    assert said(str(model), None, changes, source="12?\n34?\n") == "".join(f"{text}\n" for text in alone)


def test_a_mistake_in_a_chat_is_told_and_the_chat_goes_on(model_folder: Callable[[str], Path]) -> None:
    changes = ["sampling.max_new_tokens=6", "data.prompt='{a}{b}'"]
    text = said(str(model_folder("llama")), None, changes, source='12?\n{"a": "1", "b": "2"}\n', typed=True)
    told, shown, end = text.split("> ")[1:]
    assert told.startswith("the prompt is made of a, b: give them as JSON")
    assert (shown, end) == (f"{answer(model_folder('llama'), '12')}\n", "")


def test_columns_are_given_as_json(model_folder: Callable[[str], Path]) -> None:
    changes = ["sampling.max_new_tokens=6", "data.prompt='{a} and {b}'"]
    question = json.dumps({"a": 3, "b": [1, 2], "c": 0})
    assert said(str(model_folder("llama")), question, changes) == f"{answer(model_folder('llama'), '3 and [1, 2]')}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere/model", "x"), "cannot find model 'nowhere/model'"),
        (("MODEL", "x", "--base"), "only a run has generations and a base model"),
        (("MODEL", "x", "--generation", "1"), "only a run has generations and a base model"),
        (("RUN", "x", "--generation", "9"), "no generation 9"),
        (("RUN", "x", "sampling.temprature=1"), "did you mean 'sampling.temperature'?"),
        (("RUN", "x" * 300), "more than the model's context of 256"),
        (("RUN", "x", "data.prompt='{a}{b}'"), "the prompt is made of a, b: give them as JSON"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, model_folder: Callable[[str], Path], arguments: tuple[str, ...], expected: str
) -> None:
    named = {"RUN": str(run), "MODEL": str(model_folder("llama"))}
    outcome = eggroll(run.parent, "ask", *(named.get(word, word) for word in arguments))
    assert outcome.code == 2
    assert outcome.out == ""
    assert expected in outcome.err.splitlines()[-1]


def test_what_a_terminal_obeys_is_shown_only() -> None:
    text = "a\x1b]0;owned\x07b\rc\x9b31md\te\nf\x7f é 終"
    assert harmless(text) == "a\ufffd]0;owned\ufffdb\ufffdc\ufffd31md\te\nf\ufffd é 終"


def test_a_generation_of_a_model_alone_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="is no run folder"):
        ask("embedded:llama-countdown", "x", generation=1)
