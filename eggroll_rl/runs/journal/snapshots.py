"""Snapshots of a run: masters and optimizer state in one safetensors file each, so that a resume replays little."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from safetensors import SafetensorError
from torch import Tensor

from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.tensor_file import TensorFile, write_hashed
from eggroll_rl.es.tensors import Chosen, Tensors, named
from eggroll_rl.system.durable import replace_file

SUFFIX = ".safetensors"
STATE_HASH = "state_sha256"
OBJECTIVE = "objective."  # prefix of the objective's tensors; the others are the engine's

logger = logging.getLogger(__name__)


class Damaged(ValueError):
    """A snapshot does not hold what was saved."""


class Snapshot(NamedTuple):
    """The state of engine and objective after ``generation`` updates, and the hash of the weights in it. What is in a
    file or in other processes stays there until it is read."""

    generation: int
    weights_sha256: str
    state: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, generation: int, weights_sha256: str, engine: Mapping[str, Tensor], objective: Mapping[str, Tensor]
    ) -> Self:
        return cls(generation, weights_sha256, Chosen(named(engine) | named(objective, OBJECTIVE)))

    def of_engine(self) -> Tensors:
        return Chosen({name: there for name, there in named(self.state).items() if not name.startswith(OBJECTIVE)})

    def of_objective(self) -> Tensors:
        all_of_it, prefix = named(self.state), len(OBJECTIVE)
        return Chosen({name[prefix:]: there for name, there in all_of_it.items() if name.startswith(OBJECTIVE)})


class Snapshots:
    """The folder of a run's snapshots; the newest ``keep`` stay."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def paths(self) -> dict[int, Path]:
        """The files of snapshots by generation, oldest first."""
        files = [path for path in self.folder.glob(f"*{SUFFIX}") if path.stem.isdecimal()]
        return dict(sorted((int(path.stem), path) for path in files))

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot in pieces, all of it or nothing, and delete old ones (see ``prune``).

        Raises:
            UsageError: the disk is full or refuses; the snapshots before are intact.
        """
        generation, weights, state = snapshot
        metadata = {"generation": str(generation), "weights_sha256": weights}
        self.folder.mkdir(exist_ok=True)
        write = partial(write_hashed, tensors=state, metadata=metadata, key=STATE_HASH)
        replace_file(self.folder / f"{generation:08d}{SUFFIX}", write)
        self.prune(generation)

    def prune(self, generation: int) -> None:
        """Of the snapshots up to ``generation``, delete all but the newest ``keep``."""
        for path in [path for other, path in self.paths().items() if other <= generation][: -self.keep]:
            path.unlink()

    def newest(self, at_most: int, hashes: Mapping[int, str]) -> Snapshot | None:
        """The newest undamaged snapshot of up to ``at_most`` updates whose weights have the hash in ``hashes``; None:
        there is none."""
        for generation, path in reversed(self.paths().items()):
            if generation > at_most:
                continue
            try:
                snapshot = load_snapshot(path)
                if snapshot.weights_sha256 != hashes.get(generation):
                    raise Damaged("it is not of this run")
            except Damaged as reason:
                logger.warning("snapshot %s is passed over: %s", path, reason)
            else:
                return snapshot
        return None


def load_snapshot(path: Path) -> Snapshot:
    """Open a snapshot and check all of it; its tensors are read from the file when they are asked for.

    Raises:
        Damaged: truncated, or not the bytes that were written.
    """
    try:
        state = TensorFile(path)
    except (SafetensorError, OSError) as error:
        raise Damaged(f"it cannot be read ({error})") from error
    generation, metadata = int(path.stem), state.metadata
    if metadata.get("generation") != str(generation):
        raise Damaged("its name is that of another generation")
    if metadata.get(STATE_HASH) != tensors_hash(state):
        raise Damaged("its checksum does not fit")
    return Snapshot(generation, metadata.get("weights_sha256", ""), state)
