"""Numbers as people and models write them, read exactly: ``$1,234.50``, ``1{,}234``, ``3/4``, ``1\\frac{1}{2}``."""

import re
from collections.abc import Iterator
from fractions import Fraction

_GLYPHS = str.maketrans(
    dict.fromkeys("−–﹣－‑", "-")  # noqa: RUF001
    | dict.fromkeys("\u00a0\u2009\u202f~", " ")
    | {"⁄": "/", "’": "'", "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4"}  # noqa: RUF001
)
_TERM = r"(?:\{\s*([0-9]{1,12})\s*\}|([0-9]))"
_SPELLINGS = (
    (re.compile(rf"(-?)\s?\\[dtc]?frac\s?{_TERM}\s?{_TERM}"), r" \1\2\3/\4\5"),
    (re.compile(rf"(?<!-)\\[dtc]?frac\s?\{{\s?-([0-9]{{1,12}})\s?\}}\s?{_TERM}"), r" -\1/\2\3"),
    (re.compile(r"\{,\}|\\!,(?:\\!)?|,\\!"), ","),
    (re.compile(r"\\[,;: ]"), " "),
    (re.compile(r"\\(?=[$%#])"), ""),
    (re.compile(r"(-?)[$€£¥₹₩₽¢]\s?(-?)(?=\.?[0-9])"), r" \1\2"),
    (re.compile(r"(?<==)\s*-\s*(?=\.?[0-9])|\b[Nn]egative\s+(?=\.?[0-9])"), " -"),
)
_POWER_OF_TEN = re.compile(
    r"(?<![0-9.])([0-9]{1,9}(?:\.[0-9]{1,9})?)\s?(?:\\times|\\cdot|[*x\u00d7])\s?10\s?\^\s?\{?(-?[0-9]{1,2})\}?(?![0-9])"
)
_THOUSANDS = tuple(
    re.compile(rf"(?<![0-9.,_'])[0-9]{{1,3}}(?:{group})*{mark}[0-9]{{3}}(?![0-9]|[,_'][0-9]|\s?/)")
    for mark, group in ((",", ",[0-9]{2,3}"), (" ", " [0-9]{3}"), ("'", "'[0-9]{3}"), ("_", "_[0-9]{3}"))
)
_OPERATOR = r"(?:[-+/^,;×÷·&|]|(?<!\*)\*(?!\*)|%(?=[0-9])|\\(?:times|cdot|div|pm)\b|\b(?:or|and|to|x)\b)"  # noqa: RUF001
_NUMBER = re.compile(
    # No number of its own: part of a word, a decimal, a date or a time, an index, a power, a denominator, a root.
    r"(?<![A-Za-z0-9])(?<![0-9][.,:/_'])(?<!\^)(?<!\^\{)(?<!\}\{)(?<!\}\{-)(?<!frac\{)(?<!frac\{-)(?<!sqrt\{)(?<![A-Za-z]_)(?<!_\{)"
    r"(?P<sign>-?)(?:(?:(?P<whole>[0-9]{1,12})\s{1,3})?(?P<part>[0-9]{1,12}\s?/\s?[0-9]{1,12})"
    r"|(?P<decimal>(?:[0-9]{1,30}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,2})?))"
    r"(?![0-9]|[.,:/_'][0-9]|\s/\s?[0-9]|[eE][+-]?[0-9])"
)
_GOES_ON = re.compile(rf"[\s*_)]{{0,8}}(?:{_OPERATOR}[\s*_]{{0,8}}[-({{]{{0,4}}\s?\.?[0-9]|\^|!|\\(?:sqrt|pi)\b)")
_LABEL = re.compile(r"(?:[:=]|\b(?:is|are))[^A-Za-z]*$")
LABEL = 40  # characters before a number in which a label may end


def plain(text: str) -> str:
    """``text`` with LaTeX's and typography's ways to write numbers as ASCII, without currency or thousands marks."""
    text = text.translate(_GLYPHS)
    for spelling, replacement in _SPELLINGS:
        text = spelling.sub(replacement, text)
    text = _POWER_OF_TEN.sub(r"\1e\2", text)
    for thousands in _THOUSANDS:
        text = thousands.sub(lambda found: re.sub("[^0-9]", "", found[0]), text)
    return text


def last_number(text: str) -> Fraction | None:
    """The last number in a text: with thousands marks, a currency sign, as a fraction or a mixed number."""
    found = [value for _, value in _numbers(plain(text))]
    return found[-1] if found else None


def only_number(text: str) -> Fraction | None:
    """The value of a text that is one number, perhaps with a currency sign, thousands marks and a final stop; else
    None."""
    simple = plain(text).strip()
    found = next(_numbers(simple), None)
    return found[1] if found and simple.removesuffix(".").rstrip() == found[0][0].strip() else None


def first_number(text: str) -> Fraction | None:
    """The number that comes first in a text; of an equation such as ``9 * 2 = 18`` its right side.

    None where there is none, or where it goes on: ``18 or 19``, ``9 * 2``, ``2\\sqrt{3}``.
    """
    text, start = plain(text), 0
    for found, value in _numbers(text):
        if found.start() < start:
            continue
        if not _GOES_ON.match(text, found.end()):
            return value
        start = text.find("=", found.end())
        if start < 0:
            return None
    return None


def stated_number(text: str) -> Fraction | None:
    """The number that a text begins with, perhaps after a label (``Answer: 18``); else its last."""
    first = next(_numbers(simple := plain(text)), None)
    if first is None:
        return None
    before = simple[: first[0].start()]
    leads = not any(map(str.isalpha, before)) or _LABEL.search(before[-LABEL:])
    return first_number(text) if leads else last_number(text)


def _numbers(text: str) -> Iterator[tuple[re.Match[str], Fraction]]:
    for found in _NUMBER.finditer(text):
        if found["decimal"]:
            value = Fraction(found["decimal"])
        else:
            over, _, under = found["part"].partition("/")
            if int(under) == 0:
                continue
            value = int(found["whole"] or 0) + Fraction(int(over), int(under))
        yield found, -value if found["sign"] else value
