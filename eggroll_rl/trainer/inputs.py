"""What a program hands to its trainer, and where it is kept: datasets and models in the folder of the run, functions by
their import strings where another process can import them."""

import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.system.durable import replace_file, replace_folder
from eggroll_rl.system.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAIN = "train"
EVAL = "eval"
SHOWN = 64  # training rows on which accuracy is measured where no others are given


@dataclass
class Tables:
    """The datasets of a trainer; the first of ``held_out`` is the one that its run measures, and ``given`` is what was
    handed over to be held out."""

    train: "Dataset"
    held_out: Mapping[str, "Dataset"]
    given: "Dataset | Mapping[str, Dataset] | None" = None

    @classmethod
    def of(cls, train: Any, held_out: Any) -> "Tables":
        """Raises UsageError for what is no dataset that can be counted."""
        named = held_out if isinstance(held_out, Mapping) else {} if held_out is None else {EVAL: held_out}
        tables = {name: table_of("eval_dataset", table) for name, table in named.items()}
        return cls(table_of("train_dataset", train), tables, held_out)

    def file(self, run: RunFolder, name: str) -> Path:
        return run.inputs / f"{name}.parquet"

    def held_out_file(self, run: RunFolder) -> Path | None:
        """Where the rows are that the run measures; None: on some training rows."""
        return self.file(run, _file_name(next(iter(self.held_out)))) if self.held_out else None

    def measured_rows(self) -> int:
        """How many rows the run measures."""
        return len(next(iter(self.held_out.values()))) if self.held_out else min(SHOWN, len(self.train))

    def write(self, run: RunFolder) -> None:
        """Write all of them into the folder of the run."""
        run.inputs.mkdir(parents=True, exist_ok=True)
        for name, table in {
            TRAIN: self.train,
            **{_file_name(name): table for name, table in self.held_out.items()},
        }.items():
            replace_file(self.file(run, name), table.to_parquet)


def _file_name(name: str) -> str:
    """The file's name of a held-out dataset."""
    return EVAL if name == EVAL else f"{EVAL}_{re.sub(r'[^0-9A-Za-z_-]', '_', name)}"


def table_of(name: str, given: Any) -> "Dataset":
    """A dataset that can be counted; the argument's name is for the error.

    Raises:
        UsageError: it is none, or has no rows.
    """
    import datasets

    if isinstance(given, datasets.Dataset):
        if not len(given):
            raise UsageError(f"{name} has no rows")
        return given
    if isinstance(given, datasets.IterableDataset):
        raise UsageError(
            f"{name} is an IterableDataset, without a length or rows by number: take rows of "
            "it, as in Dataset.from_list(list(dataset.take(1000)))"
        )
    if isinstance(given, Mapping):
        raise UsageError(f"{name} is a {type(given).__name__} of {', '.join(map(str, given))}: name one of them")
    raise UsageError(f"{name} is a {type(given).__name__}, not a datasets.Dataset: Dataset.from_list makes one of rows")


@dataclass
class GivenModel:
    """A model as it was handed over: by name, or itself; with a tokenizer of its own, or with the model's."""

    model: "str | PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase | None"
    is_kept: bool = field(init=False)  # whether the run's folder holds it

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            self._refuse_others()
            self.is_kept = True
        else:
            self.is_kept = self.tokenizer is not None and not _is_own(self.tokenizer, self.model)

    @property
    def title(self) -> str:
        """A name for people and folders."""
        name = self.model if isinstance(self.model, str) else getattr(self.model.config, "_name_or_path", "")
        return Path(name or "model").name.removeprefix("embedded:")

    def dtype(self) -> str:
        """What its weights are stored in, as ``float32``."""
        if isinstance(self.model, str):
            from eggroll_rl.models.loading import load_config

            return str(load_config(self.model).dtype or "float32").removeprefix("torch.")
        return str(self.model.dtype).removeprefix("torch.")

    def place(self, run: RunFolder) -> str:
        """What the recipe calls it."""
        return str(run.inputs / "model") if self.is_kept else str(self.model)

    def write(self, run: RunFolder) -> None:
        """Write it into the run's folder, where it is kept there."""
        if self.is_kept:
            run.inputs.mkdir(parents=True, exist_ok=True)
            replace_folder(run.inputs / "model", self._save)

    def _save(self, folder: Path) -> None:
        from eggroll_rl.models.loading import load_model, load_tokenizer

        if isinstance(self.model, str):
            model: Any = load_model(self.model)[0]
        else:
            model = self.model
        name = self.model if isinstance(self.model, str) else getattr(self.model.config, "_name_or_path", "")
        model.save_pretrained(folder)
        (self.tokenizer or load_tokenizer(name)).save_pretrained(folder)

    def _refuse_others(self) -> None:
        from transformers import PreTrainedModel

        if hasattr(self.model, "peft_config"):
            raise UsageError("the model has adapters (PEFT), and evolution needs none: pass model.merge_and_unload()")
        if not isinstance(self.model, PreTrainedModel):
            raise UsageError(f"model is a {type(self.model).__name__}: give a name, a folder or a PreTrainedModel")


def _is_own(tokenizer: "PreTrainedTokenizerBase", name: str) -> bool:
    """Whether a model's own tokenizer makes the same tokens; how it pads does not matter here."""
    from eggroll_rl.models.loading import load_tokenizer

    own = load_tokenizer(name)
    return (
        tokenizer.get_vocab() == own.get_vocab()
        and tokenizer.chat_template == own.chat_template
        and tokenizer.eos_token == own.eos_token
        and str(getattr(tokenizer, "backend_tokenizer", None)) == str(getattr(own, "backend_tokenizer", None))
    )


def named_rewards(given: Any) -> tuple[list[str], dict[str, Callable[..., Any]]]:
    """Reward functions as a recipe names them, and those by name that no import string leads to.

    Raises:
        UsageError: something is no function and no import string.
    """
    rewards: Sequence[Any] = given if isinstance(given, list | tuple) else [] if given is None else [given]
    if not rewards:
        raise UsageError("reward_funcs is empty: give a function, an import string, or a list of these")
    names: list[str] = []
    functions: dict[str, Callable[..., Any]] = {}
    for reward in rewards:
        spec = reward if isinstance(reward, str) else import_string(_called(reward))
        if spec is None:
            name = _distinct(_name_of(reward), functions)
            functions[name] = reward
            spec = f"given:{name}"
        elif ":" not in spec:
            raise UsageError(
                f"reward_funcs: {spec!r} names a reward model, and rewards here are functions: write one that asks the "
                "model, or give an import string such as package.module:function"
            )
        names.append(spec)
    return names, functions


def import_string(function: Callable[..., Any]) -> str | None:
    """``module:name`` where another process that imports the module finds this very function; else None.

    What a script or a notebook defines (in ``__main__``) is never named: to import it would run it again.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or "." in name or "<" in name:
        return None
    loaded = sys.modules.get(module)
    if getattr(loaded, name, None) is not function or _origin(module) != getattr(loaded, "__file__", None):
        return None
    return f"{module}:{name}"


def _origin(module: str) -> str | None:
    """The file that a new process would import a module from."""
    path, spec = None, None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        found = (finder.find_spec(".".join(parts[:end]), path) for finder in sys.meta_path)
        spec = next((one for one in found if one is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec.origin if spec else None


def _called(reward: Any) -> Callable[..., Any]:
    if hasattr(reward, "config") and hasattr(reward, "forward"):
        raise UsageError(
            f"reward_funcs: a {type(reward).__name__} is a reward model, and rewards here are functions: write one "
            "that asks the model"
        )
    if not callable(reward):
        raise UsageError(f"reward_funcs: {reward!r} is no function and no import string")
    function: Callable[..., Any] = reward
    return function


def _name_of(reward: Callable[..., Any]) -> str:
    """A name for people: of a function its own, of a partial that of its function, of an object its class's."""
    inner = getattr(reward, "func", reward)
    name = getattr(inner, "__name__", type(inner).__name__)
    return re.sub(r"\W", "", name) or "reward"


def _distinct(name: str, taken: Mapping[str, Any]) -> str:
    candidates = (name if n == 1 else f"{name}_{n}" for n in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a model's files into a folder that may exist."""
    shutil.copytree(source, target, dirs_exist_ok=True)
