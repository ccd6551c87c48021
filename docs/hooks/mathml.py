"""Mathematics as MathML, made when the site is built: ``$...$`` in a line, and fenced blocks of the language ``math``.

Browsers draw MathML themselves, so that a page needs no script and no font from elsewhere; GitHub draws both forms,
too.
"""

from typing import Any
from xml.etree.ElementTree import Element, fromstring

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

INLINE = r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])"
BEFORE_ESCAPES = 185  # code is found earlier (190), backslashes and emphasis later


class InlineMath(InlineProcessor):
    def handleMatch(self, m: Any, data: str) -> tuple[Element, int, int]:
        return fromstring(convert(m.group(1)).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")), *m.span(0)


class MathML(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(InlineMath(INLINE, md), "math", BEFORE_ESCAPES)


def block(source: str, *_: Any, **__: Any) -> str:
    """A fenced block of LaTeX as one displayed formula a paragraph."""
    formulas = (convert(part, display="block") for part in source.strip().split("\n\n"))
    return '<div class="formula">' + "\n".join(formulas) + "</div>"


def on_config(config: Any) -> Any:
    """What mkdocs calls first: the extension and the kind of fence are added to those of mkdocs.yml."""
    config.markdown_extensions.append(MathML())
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "formula", "format": block})
    return config
