"""Templates into files."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from eggroll_rl import __version__
from eggroll_rl.report import words
from eggroll_rl.system.durable import replace_file


def write_page(template: str, facts: dict[str, Any], path: Path) -> None:
    """Render a template into a file. All text but the charts' is escaped: some of it was written by a model.

    Raises:
        UsageError: the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("eggroll_rl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in ("count", "share", "interval", "duration", "text")}
    page = environment.get_template(f"{template}.html.jinja").render(version=__version__, **facts)
    replace_file(path, lambda scratch: scratch.write_bytes(page.encode("utf-8", "replace")))
