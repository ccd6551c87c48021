"""The process that runs reward functions: requests come in pickled, rewards go back as JSON, over one socket.

It imports no torch and little else, so that a restart takes a fraction of a second unless the user's modules are heavy.
"""

import faulthandler
import json
import math
import os
import pickle
import resource
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from eggroll_rl.scoring.functions import Batch, NotFound, RewardFunction, WrongShape, explain

HEADER = 8  # bytes of a message's length


def main(descriptor: int) -> None:
    """Serve the socket with this file descriptor until the other side is gone, or the parent process."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    try:
        _serve(channel)
    except EOFError:
        _end()


def send(channel: socket.socket, message: bytes) -> None:
    """Send a message with its length in front."""
    channel.sendall(len(message).to_bytes(HEADER) + message)


def receive(channel: socket.socket, limit: float = math.inf, deadline: float = math.inf) -> bytes:
    """The next message.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: ``time.monotonic()`` reached ``deadline``.
        ValueError: the message is longer than ``limit`` bytes.
    """
    size = int.from_bytes(_receive(channel, HEADER, deadline))
    if size > limit:
        raise ValueError(f"a message of {size} bytes; at most {limit} are expected")
    return _receive(channel, size, deadline)


def _receive(channel: socket.socket, size: int, deadline: float) -> bytes:
    buffer = bytearray()
    while len(buffer) < size:
        if deadline < math.inf:
            channel.settimeout(max(deadline - time.monotonic(), 1e-3))
        chunk = channel.recv(min(size - len(buffer), 2**20))
        if not chunk:
            raise EOFError
        buffer += chunk
    return bytes(buffer)


def _serve(channel: socket.socket) -> None:
    """Load the functions, then answer requests: a batch to keep, or a call on some rows of it."""
    process = os.getpid()
    setup = pickle.loads(receive(channel))
    try:
        functions = _load(setup["rewards"])
    except NotFound as error:
        return send(channel, json.dumps({"error": str(error)}).encode())
    described = [{"required": function.required, "source": function.source} for function in functions]
    send(channel, json.dumps({"rewards": described}).encode())
    _limit_memory(setup["memory"])
    batch = Batch([], [], {})
    while True:
        request = pickle.loads(receive(channel))
        if "batch" in request:
            batch = Batch(*request["batch"])
        else:
            index, rows, seconds = request["call"]
            answer = _answer(functions[index], batch, rows, seconds, setup["concurrency"])
            if os.getpid() != process:  # a function forked, and this is the child: only one may answer
                os._exit(0)
            send(channel, json.dumps(answer, allow_nan=False).encode())


def _load(specs: list[str]) -> list[RewardFunction]:
    functions = []
    for spec in specs:
        try:
            functions.append(RewardFunction(spec))
        except NotFound:
            raise
        except (Exception, SystemExit) as error:  # a user's module may raise anything
            raise NotFound(f"reward {spec!r} cannot be imported: {explain(error)}") from error
    return functions


def _answer(function: RewardFunction, batch: Batch, rows: range, seconds: float, concurrency: int) -> dict[str, Any]:
    """The reply to a call. A call that takes longer than ``seconds`` ends the process, and stderr says where it was."""
    faulthandler.dump_traceback_later(max(seconds, 1e-3), exit=True)  # acts even where C code holds the interpreter
    try:
        return {"rewards": function(batch, rows, concurrency)}
    except WrongShape as error:
        return {"shape": str(error)}
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        return {"exception": explain(error, function.source)}
    finally:
        faulthandler.cancel_dump_traceback_later()


def _limit_memory(extra: int) -> None:
    """Allow ``extra`` bytes of address space beyond what is in use now (Linux)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + extra
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    _end()


def _end() -> None:
    """End this process and whatever the rewards started."""
    os.killpg(0, signal.SIGKILL)
