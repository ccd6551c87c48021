"""A reward worker as the training process sees it: started, asked within a time limit, killed, started again."""

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from eggroll_rl.config import ScoringConfig
from eggroll_rl.scoring.worker import receive, send

START_SECONDS = 120.0  # to import the user's modules
GRACE_SECONDS = 0.5  # a worker that ran out of time says where and ends itself; after this it is killed
OUTPUT = 8192  # bytes of the worker's last output that are kept
REPLY = 2**16  # most bytes of a reply, and for each row:
REPLY_ROW = 512
COMMAND = "import sys; sys.path[:] = {path!r}; from eggroll_rl.scoring.worker import main; main({descriptor})"


class Failure(Exception):
    """A call that gave no rewards: its kind (timeout, crash, exception, shape, value) and a reason for people."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class RewardProcess:
    """A worker process with its reward functions loaded; one that hung or died is replaced at the next call.

    ``required`` holds the required parameters of each function.

    Raises:
        Failure: the functions cannot be loaded.
    """

    def __init__(self, rewards: Sequence[str], config: ScoringConfig):
        memory = int(config.memory_gib * 2**30)
        self._setup = pickle.dumps({"rewards": list(rewards), "memory": memory, "concurrency": config.concurrency})
        self._batch = b""
        self._loaded = True
        self._process: subprocess.Popen[bytes] | None = None
        described = self._start()
        self.required: list[list[str]] = [reward["required"] for reward in described]
        self._sources: list[str] = [reward["source"] for reward in described]

    def load(self, prompts: list[Any], completions: list[Any], columns: dict[str, list[Any]]) -> None:
        """Make N*P completions, member by member, the batch of the calls to come; P prompts and columns of length P."""
        self._batch = pickle.dumps({"batch": (prompts, completions, columns)}, pickle.HIGHEST_PROTOCOL)
        self._loaded = False

    def call(self, index: int, rows: range, seconds: float) -> list[float | str | None]:
        """What function ``index`` gives for some rows of the batch; a text says what is wrong with that value.

        Raises:
            Failure: no such list came back within ``seconds``.
        """
        if self._process is None:
            self._start()
        request = pickle.dumps({"call": (index, rows, seconds)})
        messages = [request] if self._loaded else [self._batch, request]
        self._loaded = True
        reply = self._ask(messages, seconds, len(rows), self._sources[index])
        for kind in ("exception", "shape"):
            if kind in reply:
                raise Failure(kind, str(reply[kind]))
        values: list[float | str | None] = reply["rewards"]
        return values

    def kill(self) -> None:
        """End the worker and whatever it started, at once."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._channel.close()
        self._reader.join(timeout=0.5)
        self._process = None
        self._loaded = not self._batch

    def _start(self) -> list[dict[str, Any]]:
        self._channel, theirs = socket.socketpair()
        with theirs:
            command = COMMAND.format(path=[*map(str, sys.path), os.getcwd()], descriptor=theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", command],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._output = bytearray()
        self._reader = threading.Thread(target=_drain, args=[self._process.stdout, self._output], daemon=True)
        self._reader.start()
        reply = self._ask([self._setup], START_SECONDS, 0, "")
        if "error" in reply:
            self.kill()
            raise Failure("crash", reply["error"])
        described: list[dict[str, Any]] = reply["rewards"]
        return described

    def _ask(self, messages: list[bytes], seconds: float, rows: int, source: str) -> dict[str, Any]:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + seconds
        try:
            self._channel.settimeout(seconds + GRACE_SECONDS)
            for message in messages:
                send(self._channel, message)
            reply = json.loads(receive(self._channel, REPLY + REPLY_ROW * rows, deadline + GRACE_SECONDS))
        except (OSError, EOFError, ValueError) as error:
            late = time.monotonic() >= deadline
            self.kill()
            cause = f"no answer within {seconds:.3g} s" if late else f"its process {_death(process.returncode)}"
            raise Failure("timeout" if late else "crash", cause + self._place(source)) from error
        except (KeyboardInterrupt, SystemExit):  # the late reply must not answer the next call
            self.kill()
            raise
        assert isinstance(reply, dict)
        return reply

    def _place(self, source: str) -> str:
        """Where in the file ``source`` the worker was when it ended, as its last output says; else that output."""
        text = self._output.decode(errors="replace")
        text = text[max(text.rfind("Timeout ("), text.rfind("Fatal Python error"), 0) :]
        found = re.search(rf'File "{re.escape(source)}", line (\d+)', text) if source else None
        if found:
            return f" ({source}:{found[1]})"
        words = " ".join(text.split())[-300:]
        return f"; its output ended with: {words}" if words else ""


def _drain(stream: IO[bytes], output: bytearray) -> None:
    """Keep reading, so that the worker never waits, and keep the end."""
    with stream:
        while chunk := stream.read(2**16):
            output += chunk
            del output[:-OUTPUT]


def _death(returncode: int) -> str:
    return f"exited with code {returncode}" if returncode >= 0 else f"died of {signal.Signals(-returncode).name}"
