"""The code blocks of the documentation: what a page's reader copies, in the order in which he reads it.

A fence names its language. What is not run says why, ```` ```bash {data-not-run="it needs a GPU"} ````; what is a part
of a file of ours says of which, ``{data-part-of="eggroll_rl/train.py"}``. A block whose first line is a comment with a
file's name is that file. Languages that nothing runs are ``text`` (what a program or model says) and ``math``.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = {path.relative_to(ROOT).as_posix(): path for path in FILES}
FENCE = re.compile(r"^( *)```(\S*)(?: \{([^\n]*)\})?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')
NAMED = re.compile(r"# ([\w./-]+\.\w+)\n")


class Block(NamedTuple):
    page: str
    line: int
    language: str
    attributes: dict[str, str]
    text: str

    @property
    def not_run(self) -> str | None:
        """Why nothing runs it."""
        return self.attributes.get("data-not-run")

    @property
    def file(self) -> str | None:
        """The name of the file that it is."""
        named = NAMED.match(self.text)
        return named[1] if named else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The blocks of a page, from the top down."""
    source = PAGES[page].read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(source):
        indent, language, attributes, text = fence.groups()
        text = "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
        line = source.count("\n", 0, fence.start()) + 1
        found.append(Block(page, line, language, dict(ATTRIBUTE.findall(attributes or "")), text))
    fences = len(re.findall(r"^ *```", source, re.MULTILINE))
    assert fences == 2 * len(found), f"{page}: {fences} fences, and {len(found)} blocks are found between them"
    return found
