"""Reward workers, from the training process: start one, call it within a time limit, end it, replace it."""

import os
import pickle
import re
import secrets
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from eggroll_rl.config import ScoringConfig
from eggroll_rl.scoring.replies import LARGEST_REPLY, LARGEST_ROW, parsed, parsed_start
from eggroll_rl.scoring.values import RewardOutputs
from eggroll_rl.scoring.worker import Setup, command, receive, send

START_SECONDS = 120.0  # to import the user's modules
Form = TypeVar("Form")
GRACE_SECONDS = 0.5  # in which a worker whose time is over prints a traceback and exits; then it is killed
END_SECONDS = 5.0  # to end everything that a worker started
OUTPUT = 8192  # bytes of a process's last output that are kept


class Failure(Exception):
    """A call that gave no rewards: its kind (timeout, crash, exception, shape, value) and a reason for people."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind, self.reason = kind, reason


UNREACHED = Failure("timeout", "no time was left to try it apart from others that failed")


class OutputPipe:
    """A pipe that a thread drains, so that its writer never blocks; ``tail`` holds the last bytes written."""

    def __init__(self) -> None:
        self.tail = bytearray()
        self._reader, self.writer = os.pipe()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait up to ``GRACE_SECONDS`` for the end of the output, then stop reading."""
        self._thread.join(GRACE_SECONDS)
        self._over.set()
        self._thread.join()

    def _drain(self) -> None:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        while not self._over.is_set():
            if poll.poll(100):
                chunk = os.read(self._reader, 2**16)
                if not chunk:
                    break
                self.tail += chunk
                del self.tail[:-OUTPUT]
        os.close(self._reader)


class ForkServer:
    """The process that imports the user's modules once and forks workers from there. It is started at the first fork,
    and again if it has died."""

    def __init__(self, rewards: Sequence[str], config: ScoringConfig):
        self._setup = Setup(0, tuple(rewards), int(config.memory_gib * 2**30), config.concurrency)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def fork(self, *descriptors: int) -> None:
        """Fork a worker, and pass it these descriptors: its channel, its output, and the pipe for its exit code."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            with suppress(OSError):  # it ended just now: the worker's channel says so
                socket.send_fds(self._control, [b"+"], descriptors)

    def death(self) -> str:
        """How the process ended and the end of its output, as text; empty where it runs."""
        process = self._process
        if process is None:
            return ""
        try:
            return _death(process.wait(GRACE_SECONDS)) + _ending(self._output.tail)
        except subprocess.TimeoutExpired:
            return ""

    def close(self) -> None:
        """End the process and everything that it started."""
        if self._process is None:
            return
        self._control.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._process = None

    def _start(self) -> None:
        self.close()
        self._control, theirs = socket.socketpair()
        self._output = OutputPipe()
        with theirs:
            self._process = subprocess.Popen(
                command(self._setup._replace(control=theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output.writer,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        os.close(self._output.writer)


class RewardProcess:
    """A worker of the fork server; one that hung or died is replaced at the next call."""

    def __init__(self, fork_server: ForkServer, functions: int):
        self._fork_server, self._functions = fork_server, functions
        self._sources: list[str] = []
        self._batch = b""
        self._loaded = True
        self._channel: socket.socket | None = None

    def start(self) -> list[list[str]]:
        """Start a worker, and return the required parameters of each function.

        Raises:
            Failure: the functions cannot be loaded.
        """
        self._channel, theirs = socket.socketpair()
        self._exit_code, exit_code = os.pipe()
        self._output = OutputPipe()
        self._fork_server.fork(theirs.fileno(), self._output.writer, exit_code)
        theirs.close()
        os.close(exit_code)
        os.close(self._output.writer)
        loaded = self._ask([], START_SECONDS, LARGEST_REPLY, "", lambda reply: parsed_start(reply, self._functions))
        if loaded.error is not None:
            self.kill()
            raise Failure("crash", loaded.error)
        self._sources = [function.source for function in loaded.functions]
        return [function.required for function in loaded.functions]

    def load(self, batch: bytes) -> None:
        """Set the batch, pickled ``RewardInputs``, of the calls that follow."""
        self._batch, self._loaded = batch, False

    def call(self, index: int, rows: range, seconds: float) -> RewardOutputs:
        """The outputs of function ``index`` for some rows of the batch.

        Raises:
            Failure: the function failed, the worker died, or no reply came within ``seconds``.
        """
        if self._is_stale():
            self.kill()
        if self._channel is None:
            self.start()
        token = secrets.token_hex(8)  # so that no reply to an earlier call passes for one to this
        request = pickle.dumps({"call": (index, rows, seconds), "token": token})
        messages = [request] if self._loaded else [self._batch, request]
        self._loaded = True
        limit = LARGEST_REPLY + LARGEST_ROW * len(rows)
        source = self._sources[index]
        reply = self._ask(messages, seconds, limit, source, lambda reply: parsed(reply, token, len(rows)))
        if reply.exception is not None:
            raise Failure("exception", reply.exception)
        if reply.shape is not None:
            raise Failure("shape", reply.shape)
        return RewardOutputs(reply.rewards, reply.metrics, reply.extras)

    def interrupt(self) -> None:
        """Make a call that another thread waits for fail at once."""
        if self._channel is not None:
            with suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)

    def kill(self) -> int | None:
        """Kill the worker and everything that it started; returns its exit code, None if it is unknown."""
        if self._channel is None:
            return None
        self.interrupt()  # the guard sees the channel close, and kills what is left
        self._channel.close()
        poll = select.poll()
        poll.register(self._exit_code, select.POLLIN)
        code = os.read(self._exit_code, 16) if poll.poll(END_SECONDS * 1000) else b""
        os.close(self._exit_code)
        self._output.close()
        self._channel = None
        self._loaded = not self._batch
        return int(code) if code else None

    def _is_stale(self) -> bool:
        """Whether the worker died or wrote something since its last reply."""
        poll = select.poll()
        if self._channel is not None:
            poll.register(self._channel, select.POLLIN)
        return bool(poll.poll(0))

    def _ask(
        self, messages: list[bytes], seconds: float, limit: int, source: str, parse: Callable[[bytes], Form]
    ) -> Form:
        assert self._channel is not None
        deadline = time.monotonic() + seconds
        try:
            self._channel.settimeout(seconds + GRACE_SECONDS)
            for message in messages:
                send(self._channel, message)
            return parse(receive(self._channel, limit, deadline + GRACE_SECONDS))
        except (OSError, EOFError, ValueError) as error:
            late = time.monotonic() >= deadline
            code = self.kill()
            cause = f"no answer within {seconds:.3g} s" if late else self._cause(code, error)
            raise Failure("timeout" if late else "crash", cause + self._place(source)) from error
        except (KeyboardInterrupt, SystemExit):  # the late reply must not answer the next call
            self.kill()
            raise

    def _cause(self, code: int | None, error: Exception) -> str:
        if isinstance(error, ValueError):
            return f"its process wrote {error}"
        if code is None:  # its guard ended too
            return f"its process {self._fork_server.death() or 'was killed with its guard'}"
        return f"its process {_death(code)}"

    def _place(self, source: str) -> str:
        """The line of ``source`` at which the worker ended, by the traceback in its output; else the output's end."""
        text = self._output.tail.decode(errors="replace")
        text = text[max(text.rfind("Timeout ("), text.rfind("Fatal Python error"), 0) :]
        found = re.search(rf'File "{re.escape(source)}", line (\d+)', text) if source else None
        return f" ({source}:{found[1]})" if found else _ending(self._output.tail)


def _ending(output: bytes | bytearray) -> str:
    words = " ".join(output.decode(errors="replace").split())[-300:]
    return f"; its output ended with: {words}" if words else ""


def _death(code: int) -> str:
    return f"exited with code {code}" if code >= 0 else f"died of {signal.Signals(-code).name}"
