"""Ask a model in a terminal: one question, a chat, or questions line by line.

What the model says is only ever shown: characters that a terminal would obey are replaced.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from eggroll_rl.config import Recipe, build_recipe, load_recipe
from eggroll_rl.data.encoding import PromptCheck
from eggroll_rl.data.template import Template
from eggroll_rl.engines.build import engine_kind
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.rollout import Prompt
from eggroll_rl.hub import download_run
from eggroll_rl.models.loading import load_config, load_model, load_tokenizer, stored_weights
from eggroll_rl.models.naming import is_hub_name, locate_model
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.rebuild import model_at
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.hub import fetch
from eggroll_rl.system.terminal import harmless

STDIN = "-"  # in place of a question: read them
UNFINISHED = "\ufffd"  # stands at the end of a text for bytes whose character is not whole yet


class Answerer(NamedTuple):
    """A model that answers; its name is shown before each answer ("": no name)."""

    name: str
    engine: LocalEngine
    check: PromptCheck


def ask(
    name: str,
    question: str | None = None,
    overrides: Sequence[str] = (),
    generation: int | None = None,
    base: bool = False,
    output: TextIO | None = None,
    source: TextIO | None = None,
) -> None:
    """Show the answer to a question as it is generated; without a question, answer each line of ``source``.

    On a terminal the lines are one chat, if the model takes chats.

    Args:
        name: a run's folder or its name on the hub, or a model's name. A run is asked by its own template, engine and
            sampling.
        question: text for the one column of the template, or its columns as a JSON object; None or ``-``: read.
        overrides: ``dotted.key=value`` of the recipe.
        generation: ask a run's model after so many updates; None: the final one.
        base: also ask the run's base model.
        output: where answers are written; None: standard output.
        source: where questions come from; None: standard input.

    Raises:
        UsageError: a mistake in the arguments, found before a model is loaded, or a question that cannot be asked.
    """
    output, source = output or sys.stdout, source or sys.stdin
    run = RunFolder(Path(name))
    own = _own_recipe(name, run)
    if own is None and (generation is not None or base):
        raise UsageError(f"{name} is no run folder: only a run has generations and a base model")
    recipe = build_recipe((own or _recipe_of(name)).model_dump(mode="json"), overrides)
    if recipe.text is not None:
        raise UsageError(f"{name} foretells text, and answers nothing: `eggroll-rl report` shows what it writes")
    template = Template(recipe.data.prompt, recipe.data.system)
    first = None if question in (None, STDIN) else _prompt(template, question or "")
    with ExitStack() as stack:
        where = {"": name if own is None else _place(name, run, generation, stack)}
        if base:
            where = {"base": recipe.model, "run" if generation is None else f"generation {generation}": where[""]}
        answerers = [_answerer(recipe, label, place, first) for label, place in where.items()]
        if first is not None:
            _answer_all(answerers, [first] * len(answerers), recipe, output)
        else:
            _converse(answerers, template, recipe, source, output)


def _own_recipe(name: str, run: RunFolder) -> Recipe | None:
    """The recipe of a run, in a folder or pushed to the hub; None if ``name`` is a model without one."""
    if run.recipe_file.is_file():
        return load_recipe(run.recipe_file)
    if not is_hub_name(name) or "/" not in name:
        return None
    locate_model(name)
    try:
        return load_recipe(fetch(name, run.recipe_file.name))
    except UsageError:  # a model without a recipe
        return None


def _place(name: str, run: RunFolder, generation: int | None, stack: ExitStack) -> str:
    """Where a run's model is after so many updates (None: the final one, or the one on the hub); what is rebuilt for it
    goes when ``stack`` ends."""
    if is_hub_name(name):
        if generation is None:
            return name
        saved = download_run(name)
        if generation == saved.generation:
            return str(saved.folder)
        run = RunFolder(saved.folder)
    return str(stack.enter_context(model_at(run, generation)))


def _recipe_of(name: str) -> Recipe:
    """A recipe to ask a model by: questions are a user's messages if it has a chat template, else plain text."""
    chat = [{"role": "user", "content": "{prompt}"}] if load_tokenizer(name).chat_template else None
    reward = {"fn": "eggroll_rl.rewards.countdown:countdown"}  # a recipe needs one; it is never called
    values = {"model": name, "engine": {"name": "local"}, "data": {"prompt": chat}, "rewards": [reward]}
    return Recipe.model_validate(values)


def _prompt(template: Template, text: str) -> Prompt:
    """The prompt of a question, which is the value of the template's only column, or JSON with all its columns."""
    fields = list(template.fields)
    if len(fields) == 1:
        return template({fields[0]: text})
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not set(fields) <= row.keys():
        example = json.dumps(dict.fromkeys(fields, "..."))
        raise UsageError(f"the prompt is made of {', '.join(fields)}: give them as JSON, as in '{example}'")
    return template(row)


def _answerer(recipe: Recipe, label: str, place: str, first: Prompt | None) -> Answerer:
    """Load the model in ``place``, once it is checked that it can be asked the ``first`` prompt."""
    asked = recipe.model_copy(update={"model": place})
    kind = engine_kind(recipe.engine.name)
    local = kind if issubclass(kind, LocalEngine) else LocalEngine  # which answers token by token
    check = PromptCheck.of(asked, load_config(place), load_tokenizer(place))
    if first is not None:
        check(first)
    model, tokenizer = load_model(place, getattr(torch, recipe.engine.dtype), stored_weights(place))
    return Answerer(label, local.of_model(asked, model, tokenizer, learns=False), check)


def _converse(answerers: list[Answerer], template: Template, recipe: Recipe, source: TextIO, output: TextIO) -> None:
    """Answer each line of ``source``; on a terminal, a chat prompt follows all messages so far."""
    is_chat = source.isatty()
    before: list[list[dict[str, str]]] = [[] for _ in answerers]
    for text in _lines(source, output):
        try:
            prompt = _prompt(template, text)
            prompts: list[Prompt] = [
                said + [m for m in prompt if not said or m["role"] != "system"] if isinstance(prompt, list) else prompt
                for said in before
            ]
            for answerer, one in zip(answerers, prompts, strict=True):
                answerer.check(one)
        except UsageError as error:
            if not is_chat:
                raise
            output.write(f"{error}\n")
            continue
        answers = _answer_all(answerers, prompts, recipe, output)
        if is_chat:
            before = [
                [*one, {"role": "assistant", "content": answer}] if isinstance(one, list) else []
                for one, answer in zip(prompts, answers, strict=True)
            ]


def _lines(source: TextIO, output: TextIO) -> Iterator[str]:
    """The lines of ``source`` that are not empty; on a terminal with a prompt sign before each."""
    while True:
        if source.isatty():
            output.write("> ")
            output.flush()
        line = source.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")


def _answer_all(answerers: list[Answerer], prompts: Sequence[Prompt], recipe: Recipe, output: TextIO) -> list[str]:
    """Show each model's answer to its prompt, one after the other; returns the answers."""
    answers = []
    for answerer, prompt in zip(answerers, prompts, strict=True):
        if answerer.name:
            output.write(f"--- {answerer.name}\n")
        answers.append(_show(answerer, prompt, recipe, output.write, output.flush))
        output.write("\n")
        output.flush()
    return answers


def _show(
    answerer: Answerer, prompt: Prompt, recipe: Recipe, write: Callable[[str], object], flush: Callable[[], object]
) -> str:
    """Write an answer as it is generated, and return it. Bytes that are no whole character yet are held back."""
    shown, text = "", ""
    for completion in answerer.engine.stream(prompt, recipe.sampling):
        text = completion.text
        if text.startswith(shown) and not text.endswith(UNFINISHED):
            write(harmless(text[len(shown) :]))
            flush()
            shown = text
    rest = text[len(shown) :] if text.startswith(shown) else f"\n{text}"
    write(harmless(rest))
    return text
