"""The references of recipes and of the trainer's options, written from what validates them when the site is built."""

import json
from collections.abc import Iterator
from typing import Any

from mkdocs.structure.files import File

from eggroll_rl.config import Recipe
from eggroll_rl.trainer import EggrollConfig
from eggroll_rl.trainer.options import Kind, Option, options

PAGE = "recipes.md"
OPTIONS_PAGE = "trainer_options.md"
OPTIONS_HEAD = """# Options of the trainer, one by one

All options of TRL 1.16's `GRPOConfig` by their names, and those that only evolution has.
[Coming from TRL](trainer.md) says how they work together.
"""
KINDS = {
    Kind.KEY: ("Options that set the recipe", "keys of the [recipe](recipes.md)"),
    Kind.OWN: ("Options of the trainer itself", "what it does"),
    Kind.IDLE: ("Options of no consequence", "why: every value is accepted, with a note"),
    Kind.REFUSED: ("Options that are refused", "why: no value but the default has a meaning"),
}
HEAD = """# Recipes, key by key

A recipe is a YAML file. It must name `model`, and `rewards` or `text`; every other key has the default that stands
here. On the command line a key goes by its dotted name, as in `eggroll-rl train countdown_tiny population.size=64`. A
key that does not exist is refused in one line that names the nearest one that does, and so is a value out of its range.
`eggroll-rl recipes` lists what ships, and each run's folder holds its own recipe, complete.
"""
BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "not empty",
    "minItems": "not empty",
    "pattern": "`{}`",
}
TYPES = {"string": "text", "boolean": "true or false", "object": "mapping", "array": "list", "null": "null"}

Schema = dict[str, Any]  # JSON schema, as pydantic writes it


def reference() -> str:
    """The whole page, in Markdown: a heading for each section of a recipe, a row for each key."""
    schema = Recipe.model_json_schema()
    return "\n".join([HEAD, *table(schema, schema, "")])


def table(schema: Schema, section: Schema, path: str) -> Iterator[str]:
    """The keys of one section; then the sections in it."""
    yield '<div class="keys" markdown>\n\n| key | type | default | range | |\n|---|---|---|---|---|'
    for name, field in section["properties"].items():
        yield row(path, name, field, needed=name in section.get("required", ()))
    yield "\n</div>"
    for name, field in section["properties"].items():
        for inner in sections_of(field):
            found = schema["$defs"][inner]
            yield f"\n## `{path}{name}` {{: #{anchor(path, name)} }}\n\n{prose(found['description'])}\n"
            yield from table(schema, found, f"{path}{name}.")


def row(path: str, name: str, field: Schema, needed: bool) -> str:
    """One key: its type, default, range and meaning."""
    kind, default = type_of(field), f"`{json.dumps(field.get('default', {}), ensure_ascii=False)}`"
    if sections_of(field):
        kind, default = f"[{kind}](#{anchor(path, name)})", default if default == "`null`" else ""
    cells = [f"`{name}`", kind, "needed" if needed else default, ", ".join(ranges(field)), prose(field["description"])]
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def parts(field: Schema) -> list[Schema]:
    """What a value may be: itself, or each of several."""
    return field.get("anyOf", [field])


def sections_of(field: Schema) -> list[str]:
    """Names of the sections that a value holds, alone or in a list."""
    held = [part.get("items", part) for part in parts(field)]
    return [part["$ref"].rsplit("/", 1)[-1] for part in held if "$ref" in part]


def type_of(field: Schema) -> str:
    """A value's type, as one says it of YAML."""
    if "anyOf" in field:
        return " or ".join(type_of(part) for part in field["anyOf"])
    if "enum" in field or "const" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum") or [field["const"]])
    if "$ref" in field:
        return "section"
    inner = field.get("prefixItems") or [field["items"]] if field.get("type") == "array" else []
    of = " and ".join(dict.fromkeys(type_of(item) + "s" * ("$ref" in item) for item in inner))
    kind = str(field.get("type", "any"))
    return TYPES.get(kind, kind) + (f" of {of}" if of else "")


def ranges(field: Schema) -> Iterator[str]:
    """The bounds of a value, or of the values in a list."""
    for part in parts(field):
        for bounded in (part, part.get("items", {}), *part.get("prefixItems", ())[:1]):
            schema = bounded
            if "minimumAboveZero" in schema:  # which says more than the least value
                may_be_zero = schema.get("minimum") == 0
                yield f"{'0 or ' * may_be_zero}≥ {short(schema['minimumAboveZero'])}"
                schema = {key: bound for key, bound in schema.items() if "inimum" not in key}
            yield from (words.format(short(schema[key])) for key, words in BOUNDS.items() if key in schema)


def short(bound: Any) -> str:
    """A bound as one writes it: large powers of two as such."""
    if isinstance(bound, int | float) and bound >= 2**16 and int(bound).bit_count() == 1:
        return f"2^{int(bound).bit_length() - 1}"
    return f"{bound:g}" if isinstance(bound, int | float) else str(bound)


def anchor(path: str, name: str) -> str:
    return f"{path}{name}".replace(".", "-")


def prose(text: str) -> str:
    """A docstring as one paragraph of Markdown for each of its own."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.replace("``", "`").split("\n\n"))


def options_reference() -> str:
    """The page of the trainer's options: a table for each of the four things that can become of one."""
    every = list(options(EggrollConfig))
    return "\n".join([OPTIONS_HEAD, *(text for kind in Kind for text in options_table(kind, every))])


def options_table(kind: Kind, every: list[Option]) -> Iterator[str]:
    """The options of one kind."""
    title, says = KINDS[kind]
    yield f"\n## {title}\n\n| option | default | {says} |\n|---|---|---|"
    for option in every:
        if option.kind is kind:
            said = ", ".join(f"`{key}`" for key in option.says.split(", ")) if kind is Kind.KEY else option.says
            yield f"| `{option.name}` | `{option.default!r}` | {said.replace('|', '&#124;')} |"


def on_files(files: Any, config: Any) -> Any:
    """What mkdocs calls with the pages: the references join them."""
    files.append(File.generated(config, PAGE, content=reference()))
    files.append(File.generated(config, OPTIONS_PAGE, content=options_reference()))
    return files
