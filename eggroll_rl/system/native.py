"""Compiles and loads the package's C kernels, once for each machine and version."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


class CompilerMissing(RuntimeError):
    """No C compiler is there, or it refused the source; the message holds what it said."""


@cache
def load_kernels(source: Path, options: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The shared library of a C file, compiled for this processor and kept in ``~/.cache/eggroll_rl``.

    torch's OpenMP runtime is loaded first and has the same name, so that both share one pool of threads.

    Args:
        options: of the compiler, after the usual ones.

    Raises:
        CompilerMissing: there is no compiler, or it failed.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CompilerMissing("no C compiler (cc, gcc or clang) on the PATH")
    flags = [*FLAGS, *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []), *options]
    identity = "\n".join([source.read_text(), compiler, *flags, platform.processor(), _processor()])
    library = _cache_folder() / f"{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=library.parent, suffix=".so", delete=False) as scratch:
            command = [compiler, *flags, str(source), "-o", scratch.name, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            Path(scratch.name).unlink()
            raise CompilerMissing(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
        os.replace(scratch.name, library)  # another process may do the same: the last one wins, both are right
    return ctypes.CDLL(str(library))


def kernels_or_none(
    source: Path, signatures: Mapping[str, Sequence[Any]], without: str, options: tuple[str, ...] = ()
) -> ctypes.CDLL | None:
    """The library of a C file whose functions return nothing; None, with a warning, where it cannot be compiled.

    Args:
        signatures: the functions, and the ctypes of their arguments.
        without: what the warning says of how things go on.
        options: of the compiler, after the usual ones.
    """
    try:
        library = load_kernels(source, options)
    except CompilerMissing as reason:
        logger.warning("%s: %s", without, reason)
        return None
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "eggroll_rl"


def _processor() -> str:
    """What -march=native depends on, so that a cache shared between machines holds one library for each kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.platform()]
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
