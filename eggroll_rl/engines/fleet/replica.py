"""What runs in each actor of a pool: one engine, and what it needs to stay level with the others."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from eggroll_rl.config import Recipe
from eggroll_rl.engines.build import build_local
from eggroll_rl.es.update import Update

ReplicaState = tuple[Mapping[str, Tensor], float]  # its engine's state and the RMS of the last update


class Replica:
    """One engine, in an actor of its own; it takes the updates that it lacks before it answers."""

    def where(self) -> str:
        """The process and the machine."""
        return f"process {os.getpid()} on {ray.util.get_node_ip_address()}"

    def start(self, recipe: Recipe, threads: int | None) -> None:
        """Load the engine."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.engine = build_local(recipe)
        self.last_rms = 0.0

    def answer(
        self,
        method: str,
        arguments: Sequence[Any],
        batch_bytes: int | None,
        snapshot: ReplicaState | None,
        *lacking: Update,
    ) -> Any:
        """What ``method`` gives, with the pool's batches (None: the engine's own) and after the updates it lacks."""
        if batch_bytes is not None:
            self.engine.batch_bytes = batch_bytes
        if snapshot is not None:
            state, self.last_rms = snapshot
            self.engine.load_state_dict(state)
        for update in lacking:
            self.last_rms = self.engine.apply(update)
        owner = self if hasattr(self, method) else self.engine
        return getattr(owner, method)(*arguments)

    def update_rms(self) -> float:
        return self.last_rms

    def batch_bytes(self) -> int | None:
        return self.engine.batch_bytes

    def snapshot(self) -> ReplicaState:
        return self.engine.state_dict(), self.last_rms

    def saved(self) -> dict[str, bytes]:
        """The files of the saved model by name."""
        with tempfile.TemporaryDirectory() as folder:
            self.engine.save(Path(folder))
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
