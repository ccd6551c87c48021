"""Import the module of a reward function: an installed one, or a file, which may import its neighbours."""

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType


class NotFound(LookupError):
    """No function has this import string; the message names the remedy."""


class Surroundings:
    """Makes a file's neighbours importable: the modules in its own folder, and in the one that holds its package.

    A module of the standard library, of this package or of an installed one is never taken from there. While the code
    of the file runs, ``here()`` makes its neighbours importable; outside they are hidden, so that another file finds
    its own neighbours of the same names.
    """

    def __init__(self, folders: Sequence[Path]):
        self._folders = [str(folder) for folder in folders]
        self._modules: dict[str, ModuleType] = {}
        self._names: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """The import system's question (``sys.meta_path``): a neighbour of this name, or None."""
        if path is not None or name in sys.stdlib_module_names or name == __name__.partition(".")[0]:
            return None
        spec = PathFinder.find_spec(name, self._folders)
        installed = [folder for folder in sys.path if folder not in ("", os.getcwd())]
        if spec is None or PathFinder.find_spec(name, installed):
            return None
        self._names.add(name)
        return spec

    @contextmanager
    def here(self) -> Iterator[None]:
        """Make the neighbours importable."""
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]  # typeshed wants the methods that Python 3.12 dropped
        sys.modules.update(self._modules)
        try:
            yield
        finally:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            taken = [name for name in sys.modules if name.partition(".")[0] in self._names]
            self._modules = {name: sys.modules.pop(name) for name in taken}


def load(place: str) -> tuple[ModuleType, Surroundings]:
    """The module ``package.module`` or that in ``path/file.py``, and the surroundings in which its code must run.

    Raises:
        NotFound: there is none. What the module itself raises passes through.
    """
    if place.endswith(".py") or "/" in place:
        return _load_file(place)
    try:
        return importlib.import_module(place), Surroundings([])
    except ModuleNotFoundError as error:
        if f"{place}.".startswith(f"{error.name}."):
            raise NotFound(
                f"reward module {place!r}: there is no {error.name!r}; a file is path/file.py:function"
            ) from error
        raise


def _load_file(place: str) -> tuple[ModuleType, Surroundings]:
    """The module in a file, under a name that cannot collide with an installed one."""
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise NotFound(f"reward file {place!r} does not exist (looked in {Path.cwd()})")
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    surroundings = _surroundings(path.parent, root)
    with surroundings.here():
        package = _package(root, path.parent.relative_to(root).parts)
        name = f"{package}.{path.stem.replace('.', '_')}"
        if name not in sys.modules:
            _execute(name, path)
    return sys.modules[name], surroundings


@cache
def _surroundings(folder: Path, root: Path) -> Surroundings:
    """The surroundings of a folder; its files share the modules that they import."""
    return Surroundings(list(dict.fromkeys([folder, root])))


def _package(root: Path, parts: Sequence[str]) -> str:
    """Import the package in the folder ``parts`` under ``root``, and return its name, to which relative imports of its
    files refer."""
    name = f"_eggroll_reward_{hashlib.sha256(str(root).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(root)]
    for part in parts:
        name = f"{name}.{part}"
        importlib.import_module(name)
    return name


def _execute(name: str, path: Path) -> None:
    spec = spec_from_loader(name, SourceFileLoader(name, str(path)))
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        SourceFileLoader(name, str(path)).exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
