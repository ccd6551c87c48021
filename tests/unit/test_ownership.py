"""A folder has one owner, from the first moment; the dead own nothing, and who is refused leaves nothing."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.ownership import LOCK, owned

HOLD = """if True:
    import sys, time
    from pathlib import Path
    from eggroll_rl.system.ownership import owned
    with owned(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    """Another process that owns the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_owns_it_and_the_dead_own_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    other = holder(folder)
    try:
        before = (folder / LOCK).read_bytes()
        with (
            pytest.raises(UsageError, match=rf"{folder} belongs to process {other.pid} on \S+ since \d{{4}}-"),
            owned(folder),
        ):
            raise AssertionError("not reached")
        assert (folder / LOCK).read_bytes() == before
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (folder / LOCK).exists()
    with owned(folder):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(UsageError, match=f"belongs to process {os.getpid()}"), owned(folder):
            raise AssertionError("not reached")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", [None, UsageError("no such model"), KeyboardInterrupt()])
def test_what_was_made_in_vain_goes_away(tmp_path: Path, error: BaseException | None) -> None:
    (tmp_path / "kept").mkdir()
    for folder, made in (
        (tmp_path / "a" / "b" / "c", tmp_path / "a"),
        (tmp_path / "kept" / "d", tmp_path / "kept" / "d"),
    ):
        try:
            with owned(folder):
                assert folder.is_dir()
                if error is not None:
                    raise error
        except (UsageError, KeyboardInterrupt) as raised:
            assert raised is error
        assert not made.exists()
    assert (tmp_path / "kept").is_dir()
    with owned(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_file_system_without_locks_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), owned(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).is_file()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'run'}: no locks here ([Errno 37] No locks available); let only one process at a time work in it"
    ]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"run cannot be written: Not a directory"), owned(tmp_path / "file" / "run"):
        raise AssertionError("not reached")


def contend(folder: Path, delays: list[float], inside: Any, most: Any, refused: Any) -> None:
    """Own the folder again and again; ``most`` is how many did at the same time."""
    for delay in delays:
        time.sleep(delay)
        try:
            with owned(folder):
                with inside.get_lock():
                    inside.value += 1
                    most.value = max(most.value, inside.value)
                time.sleep(delay)
                with inside.get_lock():
                    inside.value -= 1
        except UsageError as error:
            assert "belongs to process" in str(error), error
            with refused.get_lock():
                refused.value += 1


@settings(max_examples=8, deadline=None)
@given(delays=st.lists(st.lists(st.floats(0, 2e-3), min_size=20, max_size=20), min_size=3, max_size=3))
def test_never_two_at_once_whenever_they_come_and_go(tmp_path_factory: pytest.TempPathFactory, delays: Any) -> None:
    context, folder = multiprocessing.get_context("fork"), tmp_path_factory.mktemp("place") / "run"
    inside, most, refused = (context.Value("i", 0) for _ in range(3))
    processes = [context.Process(target=contend, args=(folder, mine, inside, most, refused)) for mine in delays]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert most.value == 1
    assert not folder.exists() or not list(folder.iterdir())
