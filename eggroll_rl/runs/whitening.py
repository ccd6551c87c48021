"""The whitening of a run's noise: measured on the base model before the first generation, kept in a file of its folder,
and loaded into every engine that takes the run's updates."""

import zlib
from collections.abc import Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from eggroll_rl.config import SamplingConfig
from eggroll_rl.data.dataset import Dataset
from eggroll_rl.engines.base import Engine
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.update import WHITENING
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Journal
from eggroll_rl.system.durable import replace_file
from eggroll_rl.system.errors import UsageError

ANSWERS = 128  # that whitening is measured on


def whiten(engine: Engine, data: Dataset, sampling: SamplingConfig) -> dict[str, Tensor]:
    """Measure the whitening where the engine answers the first prompts of training, and load it; returns its entries of
    the engine's state."""
    prompts = (prompt for generation in count() for prompt in data.batch(generation).prompts)
    measured = dict(engine.measure_whitening(list(islice(prompts, ANSWERS)), sampling))
    load_whitening(engine, measured)
    return measured


def load_whitening(engine: Engine, whitening: Mapping[str, Tensor]) -> None:
    """Load what ``whiten`` returned."""
    engine.load_state_dict({**engine.state_dict(), **whitening})


def save_whitening(run: RunFolder, whitening: Mapping[str, Tensor]) -> str:
    """Write the run's file; returns the SHA-256 of its tensors."""
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in whitening.items()}

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)

    replace_file(run.whitening_file, write)
    return tensors_hash(whitening)


def clear_whitening(run: RunFolder, engine: Engine) -> None:
    """Remove what an earlier run with this engine, or one that was killed before its journal, has left."""
    run.whitening_file.unlink(missing_ok=True)
    if engine.whitens:
        state = engine.state_dict()
        plain = {key: tensor for key, tensor in state.items() if not key.startswith(f"{WHITENING}.")}
        if len(plain) < len(state):
            engine.load_state_dict(plain)


def restore_whitening(engine: Engine, journal: Journal) -> None:
    """Load the whitening that a run began with, if its noise is whitened.

    Raises:
        UsageError: the run's file is missing, or is not the one that it began with.
    """
    if journal.header.whitening_sha256 is None:
        return
    path = RunFolder(journal.path.parent).whitening_file
    try:
        with np.load(path) as arrays:
            whitening = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}), and the run's noise follows from it: restore it") from error
    if tensors_hash(whitening) != journal.header.whitening_sha256:
        raise UsageError(f"{path} is not the file that the run began with, and its noise follows from it: restore it")
    load_whitening(engine, whitening)
