"""What a trainer keeps: the newest model, the records of its run, its callbacks."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eggroll_rl.config import Recipe
from eggroll_rl.system.errors import UsageError
from eggroll_rl.trainer.config import EggrollConfig

if TYPE_CHECKING:
    from accelerate import PartialState
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.trainer_callback import CallbackHandler, TrainerCallback, TrainerControl, TrainerState

    from eggroll_rl.hub.card import Notes
    from eggroll_rl.runs.folder import RunFolder
    from eggroll_rl.trainer.callbacks import Callbacks
    from eggroll_rl.trainer.inputs import GivenModel, Tables


class Kept:
    """The part of ``EggrollTrainer`` that has to do with what its run leaves.

    Attributes:
        args: the options.
        recipe: what is run.
        state: of transformers: ``global_step``, ``log_history`` and others. A generation is a step.
    """

    args: EggrollConfig
    recipe: Recipe
    state: "TrainerState"
    control: "TrainerControl"
    callback_handler: "CallbackHandler"
    _given: "GivenModel"
    _tables: "Tables"
    _functions: Mapping[str, Callable[..., Any]]
    _run: "RunFolder"
    _watcher: "Callbacks"

    def _model_place(self) -> str:
        """Where the newest model is: the run's, of one that was cut short what its journal gives, else the one that it
        begins with."""
        if not self._run.journal_file.is_file():
            self._given.write(self._run)
            return self.recipe.model
        with self._run.journal() as journal:
            reached, is_complete = len(journal), journal.is_complete
        if is_complete:
            return str(self._run.model)
        place = self._run.inputs / f"generation_{reached}"
        if not place.exists():
            from eggroll_rl.runs.rebuild import export

            export(self._run.path, place)
        return str(place)

    @property
    def model(self) -> "PreTrainedModel":
        """The newest model, loaded; the one that was handed over where one was."""
        if not isinstance(self._given.model, str):
            return self._given.model
        from eggroll_rl.models.loading import load_model

        return load_model(self._model_place())[0]

    @property
    def processing_class(self) -> "PreTrainedTokenizerBase":
        """The tokenizer."""
        from eggroll_rl.models.loading import load_tokenizer

        return self._given.tokenizer or load_tokenizer(self.recipe.model)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the newest model as a Hugging Face folder; the run has it in ``output_dir/model`` anyway.

        Args:
            output_dir: a folder, which may exist; None: that of the options.
        """
        from eggroll_rl.models.loading import load_model
        from eggroll_rl.trainer.inputs import copy_folder

        folder = Path(output_dir or self._run.path)
        place = Path(self._model_place())
        if place.is_dir():
            copy_folder(place, folder)
            return
        model, tokenizer = load_model(str(place))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def log(self, logs: Mapping[str, Any]) -> None:
        """Add an entry to ``state.log_history``, and show it to the callbacks."""
        self._watcher.log(logs)

    def log_metrics(self, split: str, metrics: Mapping[str, Any]) -> None:
        """Print metrics."""
        from eggroll_rl.runs.progress import ProgressDisplay

        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float))
        ProgressDisplay(self.recipe.generations, None).say(f"{split}: {shown}")

    def save_metrics(self, split: str, metrics: Mapping[str, Any], combined: bool = True) -> None:
        """Write metrics into ``SPLIT_results.json`` of the run's folder, and with ``combined`` add them to
        ``all_results.json``."""
        for name in (f"{split}_results.json", *(["all_results.json"] if combined else [])):
            file = self._run.path / name
            before = json.loads(file.read_text()) if name.startswith("all") and file.is_file() else {}
            file.write_text(json.dumps(before | dict(metrics), indent=4, sort_keys=True) + "\n")

    def save_state(self) -> None:
        """Write ``trainer_state.json`` into the run's folder."""
        self.state.save_to_json(str(self._run.path / "trainer_state.json"))

    def push_to_hub(
        self,
        commit_message: str | None = None,
        model_name: str | None = None,
        dataset_name: str | Sequence[str] | None = None,
        tags: str | Sequence[str] | None = None,
    ) -> str:
        """Push the run to the hub as ``eggroll-rl export --push`` does: the model, its card, and the journal by which
        anyone can verify it; returns the address.

        Args:
            commit_message: None: which generation it is.
            model_name: the title of the card; None: the name on the hub.
            dataset_name: the dataset that the card names, or several.
            tags: of the card, beside its own.

        Raises:
            UsageError: the run is not complete, or the hub cannot be reached or refuses.
        """
        from eggroll_rl.hub import push_to_hub

        return push_to_hub(
            self._run.path,
            self._hub_name(),
            private=bool(self.args.hub_private_repo),
            message=commit_message,
            notes=_notes(model_name, dataset_name, tags),
        )

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | Sequence[str] | None = None,
        tags: str | Sequence[str] | None = None,
    ) -> None:
        """Write the card of the newest model, ``README.md``, into the run's folder; see ``push_to_hub``.

        Raises:
            UsageError: nothing was trained yet.
        """
        from eggroll_rl.hub.card import card_of

        if self.is_world_process_zero():
            with self._run.journal() as journal:
                name = self.args.hub_model_id or Path(str(self.args.output_dir)).name
                card = card_of(self._run, journal, len(journal), name, _notes(model_name, dataset_name, tags))
            (self._run.path / "README.md").write_text(card, encoding="utf-8")

    def _hub_name(self) -> str:
        """``owner/name`` on the hub.

        Raises:
            UsageError: no owner is named, and the hub does not say who is logged in.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        from eggroll_rl.system.hub import why_offline

        name = self.args.hub_model_id or Path(str(self.args.output_dir)).name
        if "/" in name:
            return name
        if offline := why_offline():
            raise UsageError(f"cannot push to {name}: {offline}; take push_to_hub out")
        try:
            return f"{HfApi().whoami()['name']}/{name}"
        except (HfHubHTTPError, OSError) as error:
            raise UsageError(
                f"cannot push to {name}: the hub knows no owner ({' '.join(str(error).split())[:200]}); log in by "
                "`hf auth login`, or name hub_model_id as OWNER/NAME"
            ) from error

    @property
    def hub_model_id(self) -> str | None:
        """The name on the hub."""
        return self.args.hub_model_id

    def add_callback(self, callback: "TrainerCallback | type[TrainerCallback]") -> None:
        """Add a callback of transformers."""
        self.callback_handler.add_callback(callback)

    def remove_callback(self, callback: "TrainerCallback | type[TrainerCallback]") -> None:
        """Remove one."""
        self.callback_handler.remove_callback(callback)

    @property
    def train_dataset(self) -> "Dataset":
        """The dataset of the prompts."""
        return self._tables.train

    @property
    def eval_dataset(self) -> "Dataset | Mapping[str, Dataset] | None":
        """What is held out, as it was handed over."""
        return self._tables.given

    @property
    def reward_func_names(self) -> list[str]:
        """The names of the rewards, as metrics have them."""
        from eggroll_rl.scoring.scorer import distinct

        return distinct(reward.fn.rpartition(":")[2] for reward in self.recipe.rewards)

    def pop_callback(self, callback: "TrainerCallback | type[TrainerCallback]") -> "TrainerCallback | None":
        """Remove one, and return it; None: it was not there."""
        found: TrainerCallback | None = self.callback_handler.pop_callback(callback)
        return found

    def end(self) -> None:
        """Leave the other processes of a launch, at the very end of a script; trackers end with each run."""
        self.accelerator.destroy_process_group()

    @property
    def accelerator(self) -> "PartialState":
        """What scripts ask for their process: ``is_main_process``, ``print``, ``wait_for_everyone``."""
        from accelerate import PartialState

        from eggroll_rl.engines.fleet.spmd import process_group

        process_group()  # makes the state as the run has it
        return PartialState()

    def is_world_process_zero(self) -> bool:
        """Whether this process is the first of a launch."""
        from eggroll_rl.engines.fleet.spmd import process_group

        group = process_group()
        return group is None or group.rank == 0

    def is_local_process_zero(self) -> bool:
        """Whether this process is the first of its machine."""
        return self.args.local_process_index == 0


def _notes(title: str | None, datasets: str | Sequence[str] | None, tags: str | Sequence[str] | None) -> "Notes":
    from eggroll_rl.hub.card import Notes

    several = [[text] if isinstance(text, str) else list(text or ()) for text in (datasets, tags)]
    return Notes(title, *several)
