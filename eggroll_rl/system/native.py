"""Compiles and loads the package's C kernels, once for each machine and version."""

import ctypes
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FLAGS = ("-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


class CompilerMissing(RuntimeError):
    """There is no C compiler, or it failed; the message holds its output."""


@cache
def load_kernels(source: Path, anywhere: bool = False) -> ctypes.CDLL:
    """The shared library of a C file, compiled and kept in ``~/.cache/eggroll_rl``.

    torch's OpenMP runtime is loaded first and has the same name, so that both share one pool of threads.

    Args:
        anywhere: compile for any processor of this architecture, because the source itself asks what the processor
            can do; else for this processor.

    Raises:
        CompilerMissing: there is no compiler, or it failed.
    """
    compiler = _compiler()
    flags = [*FLAGS, *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else [])]
    flags += [] if anywhere else ["-march=native"]
    processor = platform.machine() if anywhere else platform.processor() + _processor()
    identity = "\n".join([_text(source), " ".join(compiler), *flags, processor])
    name = f"{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    command, cached = [*compiler, *flags, str(source), "-lm"], _cache_folder() / name
    try:
        if not cached.is_file():
            cached.parent.mkdir(parents=True, exist_ok=True)
            _compile(command, cached)
        return ctypes.CDLL(str(cached))
    except OSError as error:
        logger.info("C kernels are compiled for this process alone: %s", error)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _compile(command, Path(folder) / name)
            return ctypes.CDLL(str(Path(folder) / name))
    except OSError as error:
        raise CompilerMissing(f"C kernels can be kept nowhere: {error}") from error


def _text(source: Path) -> str:
    """The text of a C file and of all files that it includes by quotes, directly or not."""
    texts: dict[Path, str] = {}
    unread = [source.resolve()]
    while unread:
        path = unread.pop()
        texts[path] = path.read_text()
        named = [(path.parent / name).resolve() for name in INCLUDE.findall(texts[path])]
        unread += [other for other in named if other.is_file() and other not in texts]
    return "\n".join(texts.values())


def _compiler() -> list[str]:
    """The command of the C compiler: ``CC``, which may be several words (``ccache gcc``), or one on the PATH."""
    named = os.environ.get("CC", "").strip()
    try:
        command = shlex.split(named)
    except ValueError as error:
        raise CompilerMissing(f"CC={named!r} is no command: {error}") from error
    found = command or [path for path in map(shutil.which, ("cc", "gcc", "clang")) if path][:1]
    if not found:
        raise CompilerMissing("no C compiler (cc, gcc or clang) on the PATH")
    return found


def _compile(command: list[str], library: Path) -> None:
    """Compile into a file of its own beside ``library``, and put it there.

    Raises:
        CompilerMissing: the command is none, or it fails.
        OSError: nothing can be written there.
    """
    with tempfile.NamedTemporaryFile(dir=library.parent, suffix=".so", delete=False) as scratch:
        command = [*command, "-o", scratch.name]
    try:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise CompilerMissing(f"{command[0]} cannot be run: {error}") from error
        if done.returncode:
            raise CompilerMissing(f"{shlex.join(command)} failed: {done.stderr.strip()[-500:]}")
        os.replace(scratch.name, library)  # another process may do the same: the last one wins, both are right
    finally:
        Path(scratch.name).unlink(missing_ok=True)


def kernels_or_none(source: Path, signatures: Mapping[str, Sequence[Any]], without: str) -> ctypes.CDLL | None:
    """The library of a C file whose functions return nothing; None, with a warning, where it cannot be compiled.

    Args:
        signatures: the functions, and the ctypes of their arguments.
        without: begins the warning: how things go on without the kernels.
    """
    try:
        library = load_kernels(source)
    except CompilerMissing as reason:
        logger.warning("%s: %s", without, reason)
        return None
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "eggroll_rl"


def _processor() -> str:
    """The processor's model and features, on which ``-march=native`` depends; machines may share one cache."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.platform()]
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
