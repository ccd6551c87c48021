"""YAML in which ``1e-3`` is a number, as in YAML 1.2 and JSON; PyYAML by itself reads it as text."""

import re
from typing import Any

import yaml

EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


for _side in (_Loader, _Dumper):  # the writer quotes a text that the reader would take for a number
    _side.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def read_yaml(text: str | bytes) -> Any:
    """The value that ``text`` writes.

    Raises:
        ValueError: it is not YAML, or a date or number that does not exist.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def write_yaml(value: Any) -> str:
    """Text from which ``read_yaml`` reads ``value`` back; its keys keep their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False))
