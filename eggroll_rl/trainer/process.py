"""What scripts and callbacks ask ``TrainingArguments`` about the process that trains."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Process:
    """The part of ``EggrollConfig`` that is about this process and not about the run."""

    use_cpu: bool
    log_level: str

    def to_dict(self) -> dict[str, Any]:
        """The options by name, as trackers and callbacks of transformers ask for them."""
        return dict(vars(self))

    def to_json_string(self) -> str:
        """The options as JSON."""
        return json.dumps(self.to_dict(), indent=2, default=str)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """The options by name, as text where a table of hyperparameters takes no such value."""
        kinds = (bool, int, float, str)
        return {name: value if isinstance(value, kinds) else str(value) for name, value in self.to_dict().items()}

    @property
    def world_size(self) -> int:
        """1: whatever answers for the population, one process trains."""
        return 1

    @property
    def process_index(self) -> int:
        """Of a launch, which process this is."""
        return int(self.distributed_state.process_index)

    @property
    def local_process_index(self) -> int:
        """Of a launch, which process of its machine this is."""
        return int(self.distributed_state.local_process_index)

    @property
    def should_log(self) -> bool:
        """Whether this is the process that shows things."""
        return self.process_index == 0

    @property
    def should_save(self) -> bool:
        """Whether this is the process that writes things."""
        return self.process_index == 0

    @property
    def device(self) -> "torch.device":
        """Where the model answers."""
        import torch

        return torch.device("cpu") if self.use_cpu else self.distributed_state.device

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: one, or none."""
        return int(self.device.type == "cuda")

    def get_process_log_level(self) -> int:
        """The level that ``log_level`` names, for a script's own loggers; ``passive`` is that of transformers."""
        from transformers.utils.logging import get_verbosity

        return LEVELS.get(self.log_level, get_verbosity())

    @contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """Do something in the first process of a launch, on each machine where ``local``, before the others do it."""
        state = self.distributed_state
        with state.local_main_process_first() if local else state.main_process_first():
            yield

    @property
    def distributed_state(self) -> "PartialState":
        """The processes of a launch, as ``accelerate`` knows them."""
        from accelerate import PartialState

        from eggroll_rl.engines.fleet.spmd import process_group

        process_group()  # makes the state as the run has it
        return PartialState()
