"""What runs in each actor of a pool: one engine that takes missed updates before each call."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from eggroll_rl.config import Recipe
from eggroll_rl.engines.build import build_in_process
from eggroll_rl.es.update import Update

ReplicaState = tuple[Mapping[str, Tensor], float]  # the engine's state, and the RMS of its last update


class Replica:
    """An engine in a Ray actor; before each call it takes the updates that it lacks."""

    def where(self) -> str:
        """The actor's process and machine, as text."""
        return f"process {os.getpid()} on {ray.util.get_node_ip_address()}"

    def start(self, recipe: Recipe, threads: int | None) -> None:
        """Load the engine."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.engine = build_in_process(recipe)
        self.last_rms = 0.0

    def answer(
        self,
        method: str,
        arguments: Sequence[Any],
        batch_bytes: int | None,
        snapshot: ReplicaState | None,
        *lacking: Update,
    ) -> Any:
        """Catch up, then call ``method`` of this replica or of its engine.

        Args:
            batch_bytes: the pool's, so that all replicas make the same batches; None: the engine's own.
            snapshot: state to load first; None: it has one.
            lacking: updates to take first.
        """
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

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in self.engine.state_dict().items()}

    def snapshot(self) -> ReplicaState:
        return self.state_dict(), self.last_rms

    def saved(self) -> dict[str, bytes]:
        """The files of the saved model by name."""
        with tempfile.TemporaryDirectory() as folder:
            self.engine.save(Path(folder))
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
