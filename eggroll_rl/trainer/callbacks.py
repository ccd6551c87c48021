"""A run as callbacks of transformers see it: events, a ``TrainerState``, and a ``TrainerControl`` that is obeyed."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from eggroll_rl.runs.watcher import Watcher
from eggroll_rl.trainer.config import EggrollConfig
from eggroll_rl.trainer.mapping import share_or_count

if TYPE_CHECKING:
    from transformers.trainer_callback import CallbackHandler, TrainerControl, TrainerState

    from eggroll_rl.config import Recipe
    from eggroll_rl.engines.base import Engine
    from eggroll_rl.runs.journal import Journal

Logs = dict[str, float]


class Callbacks(Watcher):
    """Tells the callbacks of a trainer of its run. A generation is a step.

    Args:
        also_measured: gives further metrics of the engine's model, at each evaluation.

    Attributes:
        engine: what answers while the run goes; None: none does.
    """

    def __init__(
        self,
        handler: "CallbackHandler",
        args: EggrollConfig,
        state: "TrainerState",
        control: "TrainerControl",
        recipe: "Recipe",
        rows: int,
        also_measured: Callable[["Engine"], Logs],
    ):
        self.handler, self.args, self.state, self.control, self.recipe = handler, args, state, control, recipe
        self.engine: Engine | None = None
        self._rows, self._also_measured = rows, also_measured
        self._every = (
            share_or_count(args.logging_steps, recipe.generations) if args.logging_strategy != "epoch" else self.epoch
        )
        self._pending: list[Logs] = []
        self._seconds = 0.0

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        return max(1, self._rows // self.recipe.data.prompts)

    @property
    def wants_measure(self) -> bool:  # type: ignore[override]
        return self.control.should_evaluate

    @property
    def wants_snapshot(self) -> bool:  # type: ignore[override]
        return self.control.should_save

    @property
    def wants_end(self) -> bool:  # type: ignore[override]
        return self.control.should_training_stop

    def begins(self, engine: "Engine", journal: "Journal") -> None:
        self.engine = engine
        self.remember(journal)
        self.control = self.handler.on_train_begin(self.args, self.state, self.control)  # type: ignore[arg-type]

    def remember(self, journal: "Journal") -> None:
        """Put the state where the run is, with the history up to there."""
        self.state.global_step = self.state.num_input_tokens_seen = 0
        self.state.log_history, self._pending = [], []
        if 0 in journal.evaluations:
            self._note(metrics_of_measure(journal.evaluations[0]))
        for entry in journal.entries():
            self.logged(entry.metrics)
            self._step()
            if self._is_log_due():
                self._note(self._averaged())
            if self.state.global_step in journal.evaluations:
                self._note(metrics_of_measure(journal.evaluations[self.state.global_step]))

    def step_begins(self, generation: int) -> None:
        if generation % self.epoch == 0:
            self.control = self.handler.on_epoch_begin(self.args, self.state, self.control)  # type: ignore[arg-type]
        self.control = self.handler.on_step_begin(self.args, self.state, self.control)  # type: ignore[arg-type]

    def logged(self, record: dict[str, Any]) -> None:
        self._seconds = record["seconds"]
        if record["generation"] >= self.state.global_step:  # else it is one that was logged before
            self._pending.append(metrics_of_generation(record, self._answers))
            self.state.num_input_tokens_seen += record["tokens"]

    def step_ends(self) -> None:
        self._step()
        self.control.should_log = self._is_log_due()
        self.control = self.handler.on_step_end(self.args, self.state, self.control)  # type: ignore[arg-type]
        if self.state.global_step % self.epoch == 0:
            self.control = self.handler.on_epoch_end(self.args, self.state, self.control)  # type: ignore[arg-type]
        if self.control.should_log:
            self.log(self._averaged())

    def measured(self, record: dict[str, Any]) -> None:
        assert self.engine is not None
        metrics = metrics_of_measure(record) | self._also_measured(self.engine)
        self.log(metrics)
        self.control = self.handler.on_evaluate(self.args, self.state, self.control, self.state.log_history[-1])  # type: ignore[arg-type]
        self._keep_best(metrics)

    def saved(self, generation: int) -> None:
        self.control = self.handler.on_save(self.args, self.state, self.control)  # type: ignore[arg-type]

    def ends(self) -> None:
        self.log(self.summary() | {"train_loss": math.nan} | (self._averaged() if self._pending else {}))
        self.control = self.handler.on_train_end(self.args, self.state, self.control)  # type: ignore[arg-type]

    def summary(self) -> Logs:
        """How long the run took and how fast it was, by the names of transformers; a sample is an answer."""
        steps = self.state.global_step
        answers, seconds = steps * self._answers, self._seconds
        return {
            "train_runtime": seconds,
            "train_samples": float(answers),
            "train_samples_per_second": answers / seconds if seconds else 0.0,
            "train_steps_per_second": steps / seconds if seconds else 0.0,
        }

    def log(self, logs: Mapping[str, Any]) -> None:
        """Add an entry to the history, and show it to the callbacks."""
        entry = self._note(logs)
        self.control = self.handler.on_log(self.args, self.state, self.control, entry)  # type: ignore[arg-type]

    @property
    def _answers(self) -> int:
        return self.recipe.population.size * self.recipe.data.prompts

    def _step(self) -> None:
        self.state.global_step += 1
        self.state.epoch = self.state.global_step * self.recipe.data.prompts / self._rows

    def _is_log_due(self) -> bool:
        step = self.state.global_step
        if self.args.logging_strategy == "no":
            return False
        return step % max(1, self._every) == 0 or (step == 1 and self.args.logging_first_step)

    def _averaged(self) -> Logs:
        """The means of what came since the last entry; where a number is missing, of those that are there."""
        logs, self._pending = self._pending, []
        names = dict.fromkeys(name for one in logs for name in one)
        means = {name: _mean(one[name] for one in logs if one.get(name) is not None) for name in names}
        return {name: value for name, value in means.items() if value is not None} | {
            "num_tokens": float(self.state.num_input_tokens_seen)
        }

    def _note(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        entry = {
            **logs,
            **({} if self.state.epoch is None else {"epoch": self.state.epoch}),
            "step": self.state.global_step,
        }
        self.state.log_history.append(entry)
        return entry

    def _keep_best(self, metrics: Logs) -> None:
        name = self.args.metric_for_best_model
        if name is None:
            return
        value = metrics.get(name if name.startswith("eval_") else f"eval_{name}")
        best = self.state.best_metric
        if value is not None and (best is None or (value > best if self.args.greater_is_better else value < best)):
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step


def metrics_of_generation(record: Mapping[str, Any], answers: int) -> Logs:
    """The record of a generation by the names that TRL logs; what TRL has not, by ours."""
    named = {
        "reward": record["reward_mean"],
        "reward_std": record.get("reward_std"),
        "reward_best_member": record.get("reward_best_member"),
        **{f"rewards/{name}/mean": value for name, value in record["rewards"].items()},
        **record.get("logged", {}),
        "completions/mean_length": record["tokens"] / answers,
        "completions/clipped_ratio": 1.0 - record["finished"],
        "learning_rate": record["lr"],
        "step_time": record["seconds_generation"],
        "reward_failures": float(sum(record["reward_failures"].values())),
        "update_rms": record.get("update_rms"),
    }
    return {name: float(value) for name, value in named.items() if value is not None}


def metrics_of_measure(record: Mapping[str, Any], prefix: str = "eval") -> Logs:
    """The numbers of an evaluation's record, ``eval_accuracy`` and others."""
    names = {name: name for name in record if name not in ("generation", "seconds")}
    names |= {"low": "accuracy_low", "high": "accuracy_high"}
    numbers = ((names[name], record[name]) for name in names if isinstance(record.get(name), int | float))
    return {f"{prefix}_{name}": float(number) for name, number in numbers}


def _mean(values: Iterator[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
