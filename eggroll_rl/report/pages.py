"""Pages from templates."""

from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from eggroll_rl import __version__
from eggroll_rl.report import words
from eggroll_rl.system.durable import replace_file
from eggroll_rl.system.errors import UsageError

HERE = "eggroll_rl.report"


def write_page(template: str, facts: dict[str, Any], path: Path, package: str = HERE) -> None:
    """Render a template of a package into a file. All text but the charts' is escaped: a model wrote some of it.

    Raises:
        UsageError: the file cannot be written.
    """
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} for {path.name}: make it, or choose another --output")
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, HERE))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["text"] = words.text
    page = environment.get_template(f"{template}.html.jinja").render(version=__version__, **facts)
    replace_file(path, lambda scratch: scratch.write_bytes(page.encode("utf-8", "replace")))
