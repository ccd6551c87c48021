"""Compiling the C kernels: whatever the environment names, they load or are done without."""

import ctypes
import shutil
from pathlib import Path

import pytest

from eggroll_rl.system import native
from eggroll_rl.system.native import CompilerMissing, kernels_or_none, load_kernels

GCC = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(GCC is None, reason="there is no C compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(native, "load_kernels", load_kernels.__wrapped__)  # not remembered from one case to the next
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "seven.c").write_text("void seven(long *to) { *to = 7; }\n")
    return tmp_path / "seven.c"


def answer(source: Path) -> int | None:
    """What the kernel writes; None: it is done without."""
    library = kernels_or_none(source, {"seven": [ctypes.c_void_p]}, "no seven")
    if library is None:
        return None
    number = ctypes.c_long()
    library.seven(ctypes.byref(number))
    return number.value


@pytest.mark.parametrize("words", ["{cc}", "env {cc}", "  {cc} -O1 ", "env A='b c' {cc}"])
def test_a_compiler_of_several_words(source: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv("CC", words.format(cc=GCC))
    assert answer(source) == 7
    assert len(list((source.parent / "cache" / "eggroll_rl").glob("seven-*.so"))) == 1


@pytest.mark.parametrize(("anywhere", "libraries"), [(True, 1), (False, 2)])
def test_a_library_for_any_processor_is_the_same_on_another(
    source: Path, monkeypatch: pytest.MonkeyPatch, anywhere: bool, libraries: int
) -> None:
    commands: list[list[str]] = []
    compile_ = native._compile
    monkeypatch.setattr(
        native, "_compile", lambda command, library: commands.append(command) or compile_(command, library)
    )
    for processor in ("one", "another"):
        monkeypatch.setattr(native, "_processor", lambda processor=processor: processor)
        number = ctypes.c_long()
        native.load_kernels(source, anywhere).seven(ctypes.byref(number))
        assert number.value == 7
    assert len(list((source.parent / "cache" / "eggroll_rl").glob("seven-*.so"))) == libraries
    assert [any(flag.startswith("-march") for flag in command) for command in commands] == [not anywhere] * libraries


@pytest.mark.parametrize("words", ["nothing-of-the-kind", "false", "gcc 'unclosed", "/", "no-ccache gcc"])
def test_without_a_compiler_that_works_there_is_a_warning(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    monkeypatch.setenv("CC", words)
    assert answer(source) is None
    assert "no seven: " in caplog.text
    with pytest.raises(CompilerMissing):
        load_kernels.__wrapped__(source)


def test_an_empty_variable_is_none(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "  ")
    assert answer(source) == 7


@pytest.mark.parametrize("place", ["a file", "beneath a file", "/proc/none"])
def test_where_no_cache_can_be_made_each_process_compiles(
    source: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    blocked = source.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", {"a file": str(blocked), "beneath a file": f"{blocked}/x"}.get(place, place))
    assert answer(source) == 7


def test_a_damaged_library_in_the_cache_does_no_harm(source: Path) -> None:
    assert answer(source) == 7
    (kept,) = (source.parent / "cache" / "eggroll_rl").glob("seven-*.so")
    kept.unlink()  # its own file: the old one is mapped
    kept.write_bytes(b"torn")
    assert answer(source) == 7


def test_a_changed_header_is_compiled_anew(source: Path) -> None:
    """Though the file that includes it, and the header between the two, are as they were."""
    folder = source.parent / "headers"
    folder.mkdir()
    source.write_text('#include <stdint.h>\n#include "headers/outer.h"\nvoid seven(int64_t *to) { *to = NUMBER; }\n')
    (folder / "outer.h").write_text('#pragma once\n#include "outer.h"\n  # include "inner.h"\n')
    for number in (7, 8, 7):
        (folder / "inner.h").write_text(f"#define NUMBER {number}\n")
        assert answer(source) == number
    assert len(list((source.parent / "cache" / "eggroll_rl").glob("seven-*.so"))) == 2
