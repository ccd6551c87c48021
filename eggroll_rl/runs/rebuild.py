"""The weights of any generation, from the base model, the journal and the whitening of its noise."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eggroll_rl.config import Exported, Recipe
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.build import build_replay_engine, engine_kind
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.models.blinkdl import save_pth
from eggroll_rl.models.int8 import save_int8
from eggroll_rl.models.loading import load_config, load_model, save_float, with_floats
from eggroll_rl.models.naming import PTH
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Journal
from eggroll_rl.runs.journal.snapshots import SUFFIX, Damaged, Snapshots, load_snapshot
from eggroll_rl.runs.whitening import restore_whitening
from eggroll_rl.system.durable import SCRATCH, cannot_write, replace_folder
from eggroll_rl.system.errors import UsageError


class Finding(NamedTuple):
    """One hash, snapshot or model that was compared with the replay, and how it differs (None: not at all)."""

    what: str
    fault: str | None


def export(folder: Path, out: Path, generation: int | None = None, weights: Exported | None = None) -> int:
    """Write the model as it was after ``generation`` updates (None: after all); returns the number of updates.

    Args:
        folder: of the run; its snapshots are not read.
        out: becomes a Hugging Face folder, or where it ends in ``.pth`` (RWKV-7) a file in BlinkDL's format, in float.
        weights: what linear layers become: ``float`` in fp32; ``int8``; ``w8a8``, the same for a server that rounds
            activations to int8 too; None: what they are in the run.

    Raises:
        UsageError: ``out`` exists, there is no such generation, the base model is another, or a float run's weights are
            wanted in int8.
    """
    if out.exists():
        raise UsageError(f"{out} exists and is never overwritten; choose another name, or remove it")
    with RunFolder(folder).journal() as journal:
        generation = len(journal) if generation is None else generation
        if out.suffix == PTH and load_config(journal.recipe.model).model_type != "rwkv7":
            raise UsageError(f"{out}: a {PTH} file holds an RWKV-7, and {journal.recipe.model} is none; name a folder")
        if weights not in (None, "float") and (journal.recipe.weights == "float" or out.suffix == PTH):
            what = f"a {PTH} file" if out.suffix == PTH else f"{folder}, whose weights are float"
            raise UsageError(f"{weights} weights are not to be had of {what}: leave out --weights")
        if not 0 <= generation <= len(journal):
            raise UsageError(f"no generation {generation}: {folder} has 0 (the base model) to {len(journal)}")
        for reached, engine in _replay(journal, generation):
            if reached in journal.hashes:
                journal.compare(reached, engine.weights_hash())
    out.parent.mkdir(parents=True, exist_ok=True)
    recipe = journal.recipe
    if weights is None and recipe.weights == "int8" and engine_kind(recipe.engine.name).rounds_activations:
        weights = "w8a8"
    if out.suffix == PTH:
        _save_pth(engine, recipe, out)
    elif recipe.weights == "int8" and weights in ("float", "w8a8"):
        with _saved(engine, out.parent) as copy:
            model, tokenizer = load_model(str(copy), getattr(torch, recipe.engine.dtype), "int8")
            replace_folder(out, partial(_save_as, weights, model, tokenizer))
    else:
        replace_folder(out, engine.save)
    return generation


@contextmanager
def model_at(run: RunFolder, generation: int | None) -> Iterator[Path]:
    """The folder of a run's model after so many updates; None: the saved model, or if there is none the last one. A
    rebuilt model is removed after the block.

    Raises:
        UsageError: see ``export``.
    """
    if generation is None and (run.model / "config.json").is_file():
        yield run.model
        return
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".", suffix=SCRATCH) as scratch:
        export(run.path, Path(scratch) / "model", generation)
        yield Path(scratch) / "model"


def verify(folder: Path, saved: tuple[Path, int] | None = None) -> Iterator[Finding]:
    """Replay the whole run, and compare with it every journalled hash, every snapshot and the saved model.

    Args:
        saved: the folder of a model and how many updates it has taken; None: the model that the run saved at its end.

    Raises:
        UsageError: the journal is damaged, or the base model is another.
    """
    run = RunFolder(folder)
    with run.journal() as journal:
        snapshots = Snapshots(run.snapshots, 1).paths()
        for generation, engine in _replay(journal, len(journal)):
            if generation in journal.hashes:
                same = journal.hashes[generation] == engine.weights_hash()
                yield Finding(f"journalled hash of generation {generation}", None if same else "the replay has another")
            if generation in snapshots:
                yield Finding(str(snapshots[generation]), _snapshot_fault(snapshots[generation], engine))
            model, end = saved or (run.model, journal.ended)
            if generation == end:
                yield Finding(str(model), _model_fault(model, engine))
        yield from (Finding(str(path), "beyond the journal") for g, path in snapshots.items() if g > len(journal))


def _replay(journal: Journal, stop: int) -> Iterator[tuple[int, Engine]]:
    """The engine with the base model, then after each update."""
    engine = build_replay_engine(journal.recipe)
    journal.check_base(engine.weights_hash())
    restore_whitening(engine, journal)
    yield 0, engine
    for entry in journal.entries(0, stop):
        engine.apply(entry.update)
        yield entry.generation + 1, engine


def _snapshot_fault(path: Path, engine: Engine) -> str | None:
    try:
        saved = load_snapshot(path).of_engine()
    except Damaged as reason:
        return str(reason)
    return None if tensors_hash(saved) == tensors_hash(engine.state_dict()) else "the replay has another state"


def _model_fault(folder: Path, engine: Engine) -> str | None:
    if not folder.is_dir():
        return "missing"
    with _saved(engine, folder.parent) as copy:
        try:
            same = _saved_hash(folder) == _saved_hash(copy)
        except SafetensorError as error:
            return f"cannot be read ({error})"
    return None if same else "the replay has other weights"


def _saved_hash(folder: Path) -> str:
    """The hash of the tensors in a Hugging Face folder, however many files they are in."""
    return tensors_hash({name: t for path in folder.glob(f"*{SUFFIX}") for name, t in load_file(path).items()})


def _save_as(weights: Exported, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if weights == "float":
        save_float(model, folder)
    else:
        save_int8(model, folder, "int8")
    tokenizer.save_pretrained(folder)


def _save_pth(engine: Engine, recipe: Recipe, out: Path) -> None:
    with _saved(engine, out.parent) as copy:
        model, _ = load_model(str(copy), getattr(torch, recipe.engine.dtype), recipe.weights)
        floats: Any = with_floats(model) if recipe.weights == "int8" else model
        save_pth(floats, out)


@contextmanager
def _saved(engine: Engine, place: Path) -> Iterator[Path]:
    """Save the engine's model into a temporary folder in ``place`` (/tmp is too small for many models)."""
    try:
        scratch = tempfile.TemporaryDirectory(dir=place, prefix=".", suffix=SCRATCH)
    except OSError as error:
        raise cannot_write(place, error) from error
    with scratch as folder:
        copy = Path(folder) / "model"
        replace_folder(copy, engine.save)
        yield copy
