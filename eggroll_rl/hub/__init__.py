"""Runs on the Hugging Face hub: the model, and beside it the journal by which anyone can verify how it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eggroll_rl.hub.card import Notes, card_of
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Journal
from eggroll_rl.runs.rebuild import model_at
from eggroll_rl.system.durable import json_text
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.hub import ENDPOINT, endpoint, why_offline

PUSHED = "eggroll.json"  # says of which generation the model is
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")  # of another model in the same place: they go


def push_to_hub(
    folder: Path,
    name: str,
    generation: int | None = None,
    private: bool = False,
    message: str | None = None,
    notes: Notes | None = None,
) -> str:
    """Put the model of a run on the hub, with its card and all by which it can be verified; returns its address.

    A repository that is there gets a new commit.

    Args:
        folder: of the run.
        name: ``owner/name``.
        generation: the model after so many updates, rebuilt from the journal; None: that of a complete run.
        private: where the repository is new, who sees it.
        message: of the commit; None: which generation it is.
        notes: what the card says beside what the run knows.

    Raises:
        UsageError: there is no such run or it is not complete, the name or token will not do, or the hub refuses.
    """
    run = RunFolder(folder)
    with run.journal() as journal:
        _refuse_unfinished(run, journal, generation)
        _refuse_unnamed(name)
        token = _token(name)
        reached = len(journal) if generation is None else generation
        with model_at(run, generation) as model:
            card = card_of(run, journal, reached, name, notes)
            files: dict[str, Path | bytes] = {path.name: path for path in sorted(model.iterdir())}
            files |= {path.name: path for path in _evidence(run) if path.is_file()}
            files |= {"README.md": card.encode(), PUSHED: json_text({"generation": reached}).encode()}
            return _commit(name, token, files, private, message or f"Generation {reached} of an EGGROLL run")


class Published(NamedTuple):
    """A run that came from the hub: its folder, in which the model is too, and how many updates that has taken."""

    folder: Path
    generation: int


def download_run(name: str) -> Published:
    """A run that ``push_to_hub`` has put on the hub.

    Raises:
        UsageError: there is no such run, or the hub cannot be asked and its cache has none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    offline = why_offline()
    try:
        folder = Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UsageError(
            f"no run {name!r}, neither as a folder nor on the hub: "
            + (f"the cache lacks it, and {offline}" if offline else f"{endpoint()} has none of that name for you")
        ) from error
    if not (folder / PUSHED).is_file():
        raise UsageError(f"{name} on the hub is no run that `eggroll-rl export --push` made: it has no {PUSHED}")
    return Published(folder, json.loads((folder / PUSHED).read_text())["generation"])


def _evidence(run: RunFolder) -> tuple[Path, ...]:
    replayed = (run.recipe_file, run.journal_file, run.whitening_file)
    return (*replayed, *run.views, run.environment_file, run.curve, run.report)


def _refuse_unfinished(run: RunFolder, journal: Journal, generation: int | None) -> None:
    if journal.header.whitening_sha256 is not None and not run.whitening_file.is_file():
        raise UsageError(f"{run.whitening_file} is missing, without which nobody can verify the run: restore it")
    if generation is not None:
        if not 0 <= generation <= len(journal):
            raise UsageError(f"no generation {generation}: {run.path} has 0 (the base model) to {len(journal)}")
    elif not journal.is_complete:
        raise UsageError(
            f"{run.path} was cut short after {len(journal)} generations: finish it by `eggroll-rl train --resume "
            f"{run.path}`, or name the generation to push (--generation {len(journal)})"
        )
    elif lacking := run.lacks(journal):
        raise UsageError(
            f"{run.path} lacks {', '.join(lacking)}: `eggroll-rl train --resume {run.path}` makes it again"
        )


def _refuse_unnamed(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1 or not all(name.split("/")):
        raise UsageError(
            f"{name!r} names no place on the hub: give OWNER/NAME, your account or an organisation's first"
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name!r} names no place on the hub: {' '.join(str(error).split())}") from error


def _token(name: str) -> str:
    from huggingface_hub import get_token

    if offline := why_offline():
        raise UsageError(f"cannot push to {name}: {offline}")
    token = get_token()
    if token is None:
        raise UsageError(f"cannot push to {name} without a token: log in by `hf auth login`, or set HF_TOKEN")
    return token


def _commit(name: str, token: str, files: Mapping[str, Path | bytes], private: bool, message: str) -> str:
    """One commit with these files; weights that the repository has under other names go."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import filter_repo_objects

    if endpoint() != ENDPOINT:
        constants.HF_HUB_DISABLE_XET = True  # every hub takes large files by LFS, not every one by Xet
    api = HfApi(token=token)
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        there = api.list_repo_files(name)
        stale = [path for path in filter_repo_objects(there, allow_patterns=list(WEIGHTS)) if path not in files]
        operations: list[Any] = [CommitOperationDelete(path) for path in stale]
        operations += [CommitOperationAdd(place, path) for place, path in files.items()]
        api.create_commit(name, operations, commit_message=message)
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:  # as uploads fail
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise UsageError(f"cannot push to {name}: {reason}") from error
    return str(url)
