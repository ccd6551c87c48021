"""A run's metrics in TensorBoard, Weights & Biases or Trackio, through the trackers of accelerate.

``metrics.jsonl`` is written always; these are further views of the same records.
"""

import json
import logging
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from eggroll_rl.config import Recipe, TrackerConfig
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.system.durable import write_json
from eggroll_rl.system.errors import UsageError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

logger = logging.getLogger(__name__)


class Trackers:
    """The trackers of a recipe; used as a context manager. One that fails on the way is left alone, with one warning.

    A resumed run goes on in the same tracker run: TensorBoard in the run's folder ``tensorboard``, where what is to be
    replayed is purged, Weights & Biases and Trackio by the id in ``trackers.json``.

    Raises:
        UsageError: the package of one is not installed.
    """

    def __init__(self, recipe: Recipe, run: RunFolder):
        self.recipe, self.run = recipe, run
        self._active: dict[str, GeneralTracker] = {}
        for config in recipe.trackers:
            _check_installed(config.name)

    def start(self, generation: int = 0) -> None:
        """Start every tracker; ``generation`` is how many updates a resumed run begins with, 0 for a new run.

        Raises:
            UsageError: one cannot start.
        """
        if not self.recipe.trackers:
            return
        identity, is_new = _identity(self.run)
        settings = {name: _plain(value) for name, value in _leaves(self.recipe.model_dump(mode="json"), ".")}
        for config in self.recipe.trackers:
            try:
                tracker = _started(config, self.run, identity, generation, settings)
                if is_new and config.name == "tensorboard":
                    tracker.store_init_configuration(settings)
            except Exception as error:  # each package has its own; mistakes in the recipe show here, before training
                raise UsageError(
                    f"tracker {config.name!r} does not start: {_reason(error)}; mend that, or take it out of trackers"
                ) from error
            self._active[config.name] = tracker

    def log(self, group: str, record: dict[str, Any]) -> dict[str, Any]:
        """Log the numbers of a record of ``metrics.jsonl`` as ``group/name``, at the step that is its generation;
        returns the record."""
        values = {f"{group}/{name}": value for name, value in _leaves(record, "/") if _is_number(value)}
        for name, tracker in list(self._active.items()):
            try:
                tracker.log(values, step=record["generation"])
            except Exception as error:  # a service that is down, a full disk: the run is worth more than its picture
                del self._active[name]
                _warn(name, error)
        return record

    def finish(self) -> None:
        """Close every tracker."""
        for name, tracker in self._active.items():
            try:
                tracker.finish()
            except Exception as error:  # as above
                _warn(name, error)
        self._active = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()


def _check_installed(name: str) -> None:
    from accelerate.tracking import get_available_trackers

    if name not in {str(tracker) for tracker in get_available_trackers()}:
        raise UsageError(f"tracker {name!r} is not installed: pip install {name}, or take it out of trackers")


def _identity(run: RunFolder) -> tuple[str, bool]:
    """The run's id in the trackers, the same when it is resumed, and whether it is new."""
    file = run.path / "trackers.json"
    is_new = not file.is_file()
    if is_new:
        write_json(file, {"id": f"{run.path.name}-{uuid.uuid4().hex[:8]}"})
    return json.loads(file.read_text(encoding="utf-8"))["id"], is_new


def _started(
    config: TrackerConfig, run: RunFolder, identity: str, generation: int, settings: dict[str, Any]
) -> "GeneralTracker":
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    from eggroll_rl.engines.fleet.spmd import process_group

    process_group()  # accelerate's state, which its trackers need
    folder = str(run.path)
    tracker: GeneralTracker
    if config.name == "tensorboard":
        options = {"purge_step": generation, **config.options}
        tracker = TensorBoardTracker("tensorboard", logging_dir=folder, **options)
    elif config.name == "wandb":
        options = {"id": identity, "name": run.path.name, "resume": "allow", "dir": folder, "config": settings}
        tracker = WandBTracker(config.project, **{**options, **config.options})
    else:
        options = {"name": identity, "resume": "allow", "embed": False, "config": settings}
        tracker = TrackioTracker(config.project, **{**options, **config.options})
    tracker.start()
    return tracker


def _leaves(value: Mapping[str, Any], joint: str) -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their joined names."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from ((f"{name}{joint}{rest}", leaf) for rest, leaf in _leaves(inner, joint))
        else:
            yield name, inner


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _warn(name: str, error: Exception) -> None:
    logger.warning("tracker %s failed and is left alone; metrics.jsonl has everything: %s", name, _reason(error))


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
