"""What a trainer asks of its model: evaluations, the answers to a dataset, or to a few prompts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from eggroll_rl.system.errors import UsageError
from eggroll_rl.trainer.kept import Kept

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers.trainer_utils import PredictionOutput

    from eggroll_rl.data.dataset import Batch
    from eggroll_rl.engines.base import Engine


class Asked(Kept):
    """The part of ``EggrollTrainer`` that asks the newest model."""

    def evaluate(
        self, eval_dataset: "Dataset | Mapping[str, Dataset] | str | None" = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answer every prompt of a dataset once, as it is decoded in training, and judge the answers.

        Args:
            eval_dataset: the dataset, several by name, or the name of one; None: those of the trainer.
            metric_key_prefix: begins the names of the metrics.

        Returns:
            ``eval_reward`` (the weighted sum of the rewards), ``eval_reward_std``, ``eval_rewards/NAME/mean``,
            ``eval_accuracy`` with the bounds of its 95 % interval ``eval_accuracy_low`` and ``_high``, and
            ``eval_completions/mean_length``.
        """
        from eggroll_rl.trainer.asking import measure

        tables = self._to_evaluate(eval_dataset)
        metrics: dict[str, float] = {}
        with self._engine() as engine:
            for name, table in tables.items():
                prefix = metric_key_prefix if len(tables) == 1 else f"{metric_key_prefix}_{name}"
                metrics |= measure(engine, self.recipe, self._functions, self._batch(table), prefix).metrics
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[arg-type]
        return metrics

    def predict(self, test_dataset: "Dataset", metric_key_prefix: str = "test") -> "PredictionOutput":
        """Answer every prompt of a dataset once, as ``evaluate`` does, and hand over the answers.

        Args:
            test_dataset: the dataset.
            metric_key_prefix: begins the names of the metrics.

        Returns:
            ``predictions``, the answers as rewards get them, row by row: texts, or for a chat its messages;
            ``label_ids``, None; ``metrics``, those of ``evaluate``, which are shown to no callback but ``on_predict``.
        """
        from transformers.trainer_utils import PredictionOutput

        from eggroll_rl.trainer.asking import measure
        from eggroll_rl.trainer.inputs import table_of

        batch = self._batch(table_of("test_dataset", test_dataset))
        with self._engine() as engine:
            asked = measure(engine, self.recipe, self._functions, batch, metric_key_prefix)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, asked.metrics)  # type: ignore[arg-type]
        return PredictionOutput(asked.answers, None, asked.metrics)  # type: ignore[arg-type]

    def generate(self, prompts: Sequence[Any], **sampling: Any) -> list[str]:
        """The model's answers to prompts, text or lists of messages.

        Args:
            sampling: keys of the recipe's section ``sampling`` to change, as in ``temperature=0.8``.
        """
        from eggroll_rl.config import SamplingConfig

        config = SamplingConfig.model_validate(self.recipe.sampling.model_dump() | sampling)
        with self._engine() as engine:
            return [answer.text for answer in engine.generate(list(prompts), config)[0]]

    def _to_evaluate(self, given: Any) -> "Mapping[str, Dataset]":
        from eggroll_rl.trainer.inputs import Tables

        own = self._tables.held_out
        if isinstance(given, str):
            if given not in own:
                raise UsageError(f"evaluate({given!r}): eval_dataset has {', '.join(own) or 'none'}")
            return {given: own[given]}
        if given is not None:
            return Tables.of(self._tables.train, given).held_out
        if not own:
            raise UsageError("evaluate: there is no eval_dataset; give one to it, or to the trainer")
        return own

    def _batch(self, table: "Dataset") -> "Batch":
        """All rows of a dataset, rendered and checked."""
        from eggroll_rl.trainer.asking import batch_of

        return batch_of(self.recipe, table)

    def _measure_others(self, engine: "Engine") -> dict[str, float]:
        """Of several held-out datasets all but the one that the run measures itself."""
        from eggroll_rl.trainer.asking import measure

        metrics: dict[str, float] = {}
        for name, table in list(self._tables.held_out.items())[1:]:
            metrics |= measure(engine, self.recipe, self._functions, self._batch(table), f"eval_{name}").metrics
        return metrics

    @contextmanager
    def _engine(self) -> "Iterator[Engine]":
        """What answers with the weights as they are: the run's own while it goes, else one with the last model."""
        from eggroll_rl.engines.build import build_engine

        if self._watcher.engine is not None:
            yield self._watcher.engine
        else:
            with build_engine(self.recipe.model_copy(update={"model": self._model_place()})) as engine:
                yield engine
