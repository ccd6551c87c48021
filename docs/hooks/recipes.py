"""The reference of recipes, written from the models that validate them when the site is built."""

import json
from collections.abc import Iterator
from typing import Any

from mkdocs.structure.files import File

from eggroll_rl.config import Recipe

PAGE = "recipes.md"
HEAD = """# Recipes, key by key

A recipe is a YAML file. Every key has the default that stands here, but `model` and `rewards`, which a recipe must name.
Any key can be given on the command line instead, by its dotted name: `eggroll-rl train countdown_tiny population.size=64`.
A key that does not exist, or a value out of its range, is refused in one line that names the nearest right one.
`eggroll-rl recipes` lists the recipes that ship, and each run folder holds its own, complete, as `recipe.yaml`.
"""
BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} long",
    "minItems": "at least {} of them",
    "pattern": "matches `{}`",
}


def reference(model: Any = Recipe) -> str:
    """The whole page, in Markdown: one section for each section of a recipe, one row for each key."""
    schema = model.model_json_schema()
    return "\n".join([HEAD, *section(schema, schema, "")])


def section(schema: dict[str, Any], node: dict[str, Any], path: str) -> Iterator[str]:
    """Heading, text and table of one section; then those of the sections inside."""
    if path:
        yield f"## `{path.removesuffix('[].')}`\n" if path.endswith("[].") else f"## `{path[:-1]}`\n"
        yield f"{node['description']}\n".replace("``", "`")
    yield "| key | type | default | range | |\n|---|---|---|---|---|"
    inner: list[tuple[str, dict[str, Any]]] = []
    for name, field in node["properties"].items():
        target, many = section_of(schema, field)
        if target is not None:
            inner.append((f"{path}{name}{'[]' if many else ''}.", target))
        yield row(path, name, field, name in node.get("required", ()), target, many)
    yield ""
    for name, target in inner:
        yield from section(schema, target, name)


def row(path: str, name: str, field: dict[str, Any], required: bool, target: Any, many: bool) -> str:
    """One key: its type, default, range and meaning."""
    if target is not None:
        anchor = f"{path}{name}".replace(".", "").replace("[]", "")
        kind, default = f"[{'list of sections' if many else 'section'}](#{anchor})", ""
    else:
        kind, default = type_of(field), f"`{yaml_text(field.get('default'))}`"
    if required:
        default = "**needed**"
    meaning = " ".join(field.get("description", "").replace("``", "`").split())
    return f"| `{name}` | {kind} | {default} | {', '.join(ranges(field))} | {meaning} |".replace("\\|", "|")


def section_of(schema: dict[str, Any], field: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The section that a field holds, None where it holds a value; and whether it holds a list of them."""
    many = field.get("type") == "array"
    for option in (field["items"],) if many and "items" in field else (field, *field.get("anyOf", ())):
        if "$ref" in option:
            return schema["$defs"][option["$ref"].rsplit("/", 1)[-1]], many
    return None, False


def type_of(field: dict[str, Any]) -> str:
    """A value's type as one says it of YAML."""
    if "anyOf" in field:
        return " or ".join(type_of(option) for option in field["anyOf"])
    if "enum" in field or "const" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        kinds = list(dict.fromkeys(type_of(item) for item in field.get("prefixItems", [field.get("items", {})])))
        return f"list of {' and '.join(kinds)}"
    names = {"string": "text", "boolean": "true or false", "object": "mapping", "integer": "integer"}
    return names.get(field.get("type", "any"), field.get("type", "any"))


def ranges(field: dict[str, Any]) -> Iterator[str]:
    """The bounds of a value, or of the values in it."""
    for inner in (field, *field.get("anyOf", ()), *([field["items"]] if "items" in field else ())):
        for key, words in BOUNDS.items():
            if key in inner:
                yield words.format(short(inner[key]))


def short(bound: Any) -> str:
    """A bound as one writes it: powers of two as such, other large numbers with an exponent."""
    if isinstance(bound, int | float) and bound >= 2**16 and float(bound).is_integer():
        whole = int(bound)
        return f"2^{whole.bit_length() - 1}" if whole & (whole - 1) == 0 else f"{whole:.0e}".replace("e+0", "e")
    return str(bound)


def yaml_text(value: Any) -> str:
    """A default as YAML in one line."""
    return json.dumps(value, ensure_ascii=False)


def on_files(files: Any, config: Any) -> Any:
    """What mkdocs calls with the pages: the reference joins them."""
    files.append(File.generated(config, PAGE, content=reference()))
    return files
