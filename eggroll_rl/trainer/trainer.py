"""``EggrollTrainer``: evolution strategies behind the methods of ``trl.GRPOTrainer``.

It writes a recipe and runs it by the loop that ``eggroll-rl train`` runs. What it is handed that a recipe cannot name
goes into the run's folder (datasets, models) or stays with it (functions that no import string leads to).
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eggroll_rl.config import Recipe
from eggroll_rl.system.errors import UsageError
from eggroll_rl.trainer.asked import Asked
from eggroll_rl.trainer.config import EggrollConfig
from eggroll_rl.trainer.hooks import refuse_hooks
from eggroll_rl.trainer.options import Kind, changed

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.trainer_callback import TrainerCallback
    from transformers.trainer_utils import TrainOutput


RewardFunc = str | Callable[..., Any]
OF_GRPO = {
    "peft_config": "members are perturbations of low rank, and every chosen weight learns: adapters have no part in it",
    "quantization_config": "a quantised weight cannot take steps this small",
    "tools": "answers come from one turn",
    "environment_factory": "answers come from one turn",
    "rollout_func": "it answers with one set of weights, and a generation asks every member of a population, each with "
    "weights of its own, inside the engine; an engine of your own is the place for it (entry point eggroll_rl.engines)",
    "reward_processing_classes": "they are for reward models, and rewards here are functions",
}

logger = logging.getLogger(__name__)


class EggrollTrainer(Asked):
    """Trains a language model on rewards by EGGROLL, with the arguments of ``trl.GRPOTrainer``.

    ```python
    trainer = EggrollTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        reward_funcs=accuracy_reward,
        args=EggrollConfig(output_dir="runs/maths", max_steps=100),
        train_dataset=dataset,
    )
    trainer.train()
    ```

    A class derived from it may add methods; one that redefines a step of gradient training, such as ``compute_loss``,
    is refused when it is made: no run would call it.

    Args:
        model: a name, a folder, or a model that is loaded; that one has the trained weights afterwards.
        reward_funcs: functions with TRL's signature, sync or async, or import strings, one or a list. A function that
            another process can import runs in processes of its own; any other, such as a lambda or what a notebook
            defines, in this one, where a hang or a crash of it is the run's.
        args: options; None: their defaults.
        train_dataset: rows with a column ``prompt``, text or a list of messages; the others reach the rewards by name.
        eval_dataset: the same of what is held out, or several by name; None: accuracy is measured on training rows.
        processing_class: the tokenizer; None: the model's own.
        callbacks: of transformers.
        optimizers: not taken: the recipe's optimizer steps.

    Attributes:
        args: the options.
        recipe: what is run.
        reward_funcs: the reward functions.
        state: of transformers: ``global_step``, ``log_history`` and others. A generation is a step.

    Raises:
        UsageError: something is missing, has another type, or has no meaning here.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_hooks(cls)

    def __init__(
        self,
        model: "str | PreTrainedModel",
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: EggrollConfig | None = None,
        train_dataset: "Dataset | None" = None,
        eval_dataset: "Dataset | Mapping[str, Dataset] | None" = None,
        processing_class: "PreTrainedTokenizerBase | None" = None,
        reward_processing_classes: Any = None,
        callbacks: "list[TrainerCallback] | None" = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
    ):
        given = {name: value for name, value in locals().items() if name in OF_GRPO and value is not None}
        if given:
            reasons = "; ".join(f"{name}: {OF_GRPO[name]}" for name in given)
            raise UsageError(f"no meaning in a run by evolution strategies, take it out: {reasons}")
        if any(part is not None for part in optimizers):
            raise UsageError("optimizers: options make the optimizer here: optim, learning_rate, lr_scheduler_type")
        if args is not None and not isinstance(args, EggrollConfig):
            raise UsageError(f"args is a {type(args).__name__}: give an EggrollConfig, which has the same options")
        from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState

        from eggroll_rl.runs.folder import RunFolder
        from eggroll_rl.trainer.callbacks import Callbacks
        from eggroll_rl.trainer.inputs import GivenModel, Tables, named_rewards
        from eggroll_rl.trainer.loading import of_no_consequence
        from eggroll_rl.trainer.mapping import recipe_of, share_or_count

        self._given = GivenModel(model, processing_class)
        self.args = dataclasses.replace(args) if args else EggrollConfig()
        if self.args.output_dir is None:
            self.args.output_dir = f"{self._given.title}-EGGROLL"
        self._run = RunFolder(Path(self.args.output_dir))
        self._tables = Tables.of(train_dataset, eval_dataset)
        rewards, self._functions = named_rewards(reward_funcs)
        self.reward_funcs = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        self.recipe = recipe_of(
            self.args,
            self._given.place(self._run),
            self._given.dtype,
            rewards,
            self._tables.file(self._run, "train"),
            len(self._tables.train),
            self._tables.held_out_file(self._run),
            self._tables.measured_rows(),
        )
        total, args = self.recipe.generations, self.args
        self.state = TrainerState(
            max_steps=total,
            num_train_epochs=-(-total * self.recipe.data.prompts // len(self._tables.train)),
            logging_steps=share_or_count(args.logging_steps, total),
            eval_steps=self.recipe.evaluation.every,
            save_steps=self.recipe.snapshots.every,
            train_batch_size=self.recipe.data.prompts,
        )
        self.control = TrainerControl()
        handler = CallbackHandler([DefaultFlowCallback, *(callbacks or [])], None, processing_class, None, None)
        handler.remove_callback(DefaultFlowCallback)  # the recipe says when; the handler wants to have seen it
        self.callback_handler = handler
        self._watcher = Callbacks(
            handler, args, self.state, self.control, self.recipe, len(self._tables.train), self._measure_others
        )
        handler.on_init_end(args, self.state, self.control)  # type: ignore[arg-type]
        idle = [f"{option.name} ({option.says})" for option, _ in changed(args) if option.kind is Kind.IDLE]
        idle += of_no_consequence(args)
        if idle:
            logger.warning("of no consequence in a run by evolution strategies: %s", "; ".join(idle))

    # training

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> "TrainOutput":
        """Train to the end, and have the model in ``output_dir/model``.

        An interrupted run (Ctrl-C, the stop button of a notebook, a kill) goes on with
        ``train(resume_from_checkpoint=True)``, in this program or in another that makes the same trainer.

        Args:
            resume_from_checkpoint: True, or the folder of a run: go on with it.

        Raises:
            UsageError: see ``eggroll_rl.train.train`` and ``resume``.
            KeyboardInterrupt: the run was interrupted, and can go on.
        """
        from transformers.trainer_utils import TrainOutput

        from eggroll_rl import train as training
        from eggroll_rl.runs.folder import RunFolder
        from eggroll_rl.trainer.mapping import by_options

        shared: dict[str, Any] = {"watcher": self._watcher, "functions": self._functions}
        if self.args.push_to_hub:
            self.args.hub_model_id = self._hub_name()  # a mistake is found before the training
        with by_options(), self._answering_again():
            if resume_from_checkpoint:
                folder = self._run.path if resume_from_checkpoint is True else Path(resume_from_checkpoint)
                self._run = RunFolder(folder)
                training.resume(folder, self._changes(), **shared)
            else:
                self._run.refuse_unusable()
                self._write_inputs()
                training.train(self.recipe, **shared)
        self._give_back_weights()
        if self.args.push_to_hub:
            self.push_to_hub()
        return TrainOutput(self.state.global_step, float("nan"), self._watcher.summary())

    def _changes(self) -> list[str]:
        """What a run that goes on is told anew, once it is sure that all else is as it was.

        Raises:
            UsageError: an option is not what it was when the run began.
        """
        with self._run.journal() as journal:
            then = journal.recipe
            self._watcher.remember(journal)
        for key in Recipe.model_fields:
            if key not in ("generations", "minutes", "output_dir", "description"):
                was, now = getattr(then, key), getattr(self.recipe, key)
                if was != now:
                    raise UsageError(
                        f"{self._run.path} was begun with other options: {key} was {was!s}, and is {now!s}; give the "
                        "old ones, or begin a new run in another output_dir"
                    )
        minutes = "null" if self.recipe.minutes is None else self.recipe.minutes
        return [f"generations={self.recipe.generations}", f"minutes={minutes}"]

    def _write_inputs(self) -> None:
        """Put what the recipe names into the run's folder; of a launch, in the first process alone."""
        from eggroll_rl.engines.fleet.spmd import process_group
        from eggroll_rl.system.durable import write_json
        from eggroll_rl.trainer.mapping import rows_of_table

        group = process_group()
        if group is None or group.rank == 0:
            self._tables.write(self._run)
            self._given.write(self._run)
            write_json(self._run.options_file, rows_of_table(self.args))

    @contextmanager
    def _answering_again(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._watcher.engine = None

    def _give_back_weights(self) -> None:
        """Give a model that was handed over the weights that it has learned."""
        if not isinstance(self._given.model, str):
            from eggroll_rl.models.loading import load_model

            self._given.model.load_state_dict(load_model(str(self._run.model))[0].state_dict())
