"""The card of a model that a run made: what it is, how good, and how to verify and repeat it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from eggroll_rl import __version__
from eggroll_rl.config import Recipe
from eggroll_rl.data.sources import is_file, is_generated
from eggroll_rl.models.naming import EMBEDDED, is_hub_name, locate_model
from eggroll_rl.report.run_page import model_name, settings_shown
from eggroll_rl.report.words import duration, interval, share
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Journal
from eggroll_rl.system.notation import write_yaml

TAGS = ["eggroll", "evolution-strategies", "reinforcement-learning", "text-generation"]


class Notes(NamedTuple):
    """What its author says of a model, and no recipe can: a title other than its name, datasets on the hub, tags."""

    title: str | None = None
    datasets: Sequence[str] = ()
    tags: Sequence[str] = ()


def card_of(run: RunFolder, journal: Journal, generation: int, name: str, notes: Notes | None = None) -> str:
    """The card, in Markdown, of the model after so many updates, which will be at ``name``."""
    recipe, notes = journal.recipe, notes or Notes()
    marks = [mark for reached, mark in sorted(journal.evaluations.items()) if reached <= generation]
    shown = dict.fromkeys((0, len(marks) - 1)) if marks else ()
    facts = {
        "metadata": write_yaml(_metadata(recipe, notes)),
        "title": notes.title or name.rpartition("/")[2],
        "name": name,
        "base": recipe.model,
        "base_is_public": is_hub_name(recipe.model) or recipe.model.startswith(EMBEDDED),
        "base_sha256": journal.header.base_sha256,
        "description": recipe.description,
        "generation": generation,
        "time": duration(journal.seconds_at(generation)),
        "accuracies": [
            (mark["generation"], share(mark["accuracy"]), interval(mark["low"], mark["high"]), mark["n"])
            for mark in (marks[index] for index in shown)
            if "accuracy" in mark
        ],
        "bits": [
            (marks[index]["generation"], f"{marks[index]['bits_per_byte']:.3f}")
            for index in shown
            if "bits_per_byte" in marks[index]
        ],
        "sha256": journal.hashes.get(generation),
        "settings": settings_shown(recipe, is_grpo=False),
        "has_curve": run.curve.is_file(),
        "package": journal.header.package_version,
        "version": __version__,
        "recipe": run.recipe_file.name,
        "journal": run.journal_file.name,
        "curve": run.curve.name,
        "model": model_name(recipe.model),
    }
    template = Environment(
        loader=PackageLoader("eggroll_rl.hub"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("card.md")
    return template.render(facts)


def _metadata(recipe: Recipe, notes: Notes) -> dict[str, Any]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards."""
    data: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    data["tags"] = [*dict.fromkeys((*TAGS, *notes.tags))]
    if is_hub_name(recipe.model):
        data |= {"base_model": recipe.model}
    if not is_generated(recipe.data.name) and not is_file(recipe.data.name) and is_hub_name(recipe.data.name):
        data |= {"datasets": [recipe.data.name]}
    if notes.datasets:
        data |= {"datasets": list(notes.datasets)}
    license_name = _license(recipe)
    return data if license_name is None else {"license": license_name, **data}


def _license(recipe: Recipe) -> str | None:
    """The base model's, as its own card says; None: it says none."""
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HfHubHTTPError

    on_hub = is_hub_name(recipe.model)
    card = recipe.model if on_hub else f"{locate_model(recipe.model)}/README.md"
    if not on_hub and not Path(card).is_file():
        return None
    try:
        found = ModelCard.load(card).data.license
    except (HfHubHTTPError, OSError, ValueError):  # there is no card, or none that can be read
        return None
    return found if isinstance(found, str) else None
