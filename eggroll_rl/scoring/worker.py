"""The processes that run reward functions: requests come in pickled, replies go back as JSON, over one socket each.

    trainer -> fork server (imports the user's modules) -> a guard for each worker -> worker (calls the functions)

A worker is a fork, so that it starts in milliseconds however heavy the modules are. Where these cannot be forked (they
started threads or processes, or hold a GPU), each worker imports them itself. No torch is imported.
"""

import faulthandler
import math
import os
import pickle
import resource
import select
import socket
import sys
import threading
import time
from json import JSONEncoder
from pathlib import Path
from typing import Any, NamedTuple

from eggroll_rl.scoring.functions import RewardFunction, explain
from eggroll_rl.scoring.guard import Watch, adopt_orphans, children, end_children, forget_watch, guard, reap
from eggroll_rl.scoring.inputs import RewardInputs, TrainerState
from eggroll_rl.scoring.modules import NotFound
from eggroll_rl.scoring.values import WrongShape

HEADER = 8  # bytes of a message's length
COMMAND = "import sys; sys.path[:] = {path!r}; from eggroll_rl.scoring.worker import main; main({setup!r})"
to_json = JSONEncoder(allow_nan=False, ensure_ascii=False).encode  # kept: a reward may replace what json holds


class Setup(NamedTuple):
    """The arguments of a fork server.

    Attributes:
        control: descriptor of its end of the control socket.
        rewards: import strings of the functions.
        memory: bytes that a worker may allocate beyond its modules.
        concurrency: slices of a batch that an async function gets at a time.
        forks: False where the modules cannot be forked, so that each worker imports them itself.
    """

    control: int
    rewards: tuple[str, ...]
    memory: int
    concurrency: int
    forks: bool = True


def command(setup: Setup) -> list[str]:
    """The command line of a fork server with this process's import path and working directory."""
    path = list(dict.fromkeys([*map(str, sys.path), os.getcwd()]))
    return [sys.executable, "-I", "-c", COMMAND.format(path=path, setup=tuple(setup))]


def main(setup_values: tuple[Any, ...]) -> None:
    """Run the fork server: fork a worker for each set of descriptors that arrives, until the trainer hangs up."""
    setup = Setup(*setup_values)
    control = socket.socket(fileno=setup.control)
    control.set_inheritable(False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    adopt_orphans()
    loaded = _load(setup.rewards) if setup.forks else None
    if loaded is not None and not _can_fork():
        end_children()
        control.set_inheritable(True)
        os.execv(sys.executable, command(setup._replace(forks=False)))
    sys.stdout.flush()  # else every fork prints it again
    guards: set[int] = set()
    watch = Watch(control, select.POLLIN)
    while (event := watch.wait()) is not None:
        if event:
            message, descriptors, _, _ = socket.recv_fds(control, 1, 3)
            if not message:
                break
            pid = os.fork()
            if pid == 0:
                control.close()
                _guarded(setup, loaded, *descriptors)
            guards.add(pid)
            for descriptor in descriptors:
                os.close(descriptor)
        if dead := reap():
            guards -= set(dead)
            end_children(spared=guards)  # of a guard that was killed
    end_children()


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


def _guarded(
    setup: Setup, loaded: list[RewardFunction] | str | None, channel: int, output: int, exit_code: int
) -> None:
    """Fork the worker, guard it until its end, and exit."""
    code = 1
    try:
        forget_watch()
        os.setsid()
        adopt_orphans()
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)
        ours = socket.socket(fileno=channel)
        worker = os.fork()
        if worker == 0:
            os.close(exit_code)
            os.setsid()
            faulthandler.enable()
            _handle_requests(setup, loaded, ours)
        else:
            guard(worker, ours, exit_code)
        code = 0
    except EOFError:  # the trainer closed the channel
        code = 0
    except BaseException:  # what is left when a reward closed the channel, say: the trainer shows it
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _handle_requests(setup: Setup, loaded: list[RewardFunction] | str | None, channel: socket.socket) -> None:
    """Run the worker: a request either brings a batch, which is kept, or calls a function on rows of it."""
    process = os.getpid()
    functions = _load(setup.rewards) if loaded is None else loaded
    if isinstance(functions, str):
        return send(channel, _encoded({"error": functions}))
    described = [{"required": function.required, "source": function.source} for function in functions]
    send(channel, _encoded({"functions": described}))
    _limit_memory(setup.memory)
    batch = RewardInputs({}, TrainerState())
    while True:
        request = pickle.loads(receive(channel))
        if "batch" in request:
            batch = request["batch"]
        else:
            index, rows, seconds = request["call"]
            reply = _reply(functions[index], batch, rows, seconds, setup.concurrency)
            if os.getpid() != process:  # a function forked, and this is the child: only one may answer
                os._exit(0)
            send(channel, _encoded({"token": request["token"], **reply}))


def _load(specs: tuple[str, ...]) -> list[RewardFunction] | str:
    """The functions, or a line of text that says why one does not load."""
    functions = []
    for spec in specs:
        try:
            functions.append(RewardFunction(spec))
        except NotFound as error:
            return str(error)
        except (Exception, SystemExit) as error:  # a user's module may raise anything
            return f"reward {spec!r} cannot be imported: {explain(error)}"
    return functions


def _can_fork() -> bool:
    """Whether this process can be forked: it has no threads, no children and holds no GPU."""
    torch = sys.modules.get("torch")
    holds_gpu = torch is not None and torch.cuda.is_initialized()
    return threading.active_count() == 1 and not holds_gpu and not children()


def _reply(
    function: RewardFunction, batch: RewardInputs, rows: range, seconds: float, concurrency: int
) -> dict[str, Any]:
    """The reply to a call. A call that takes longer than ``seconds`` ends the process, and stderr says where it was."""
    faulthandler.dump_traceback_later(max(seconds, 1e-3), exit=True)  # acts even where C code holds the interpreter
    try:
        return function(batch, rows, concurrency)._asdict()
    except WrongShape as error:
        return {"shape": str(error)}
    except BaseException as error:  # a user's function may raise anything
        return {"exception": explain(error, function.source)}
    finally:
        faulthandler.cancel_dump_traceback_later()


def _encoded(reply: dict[str, Any]) -> bytes:
    return to_json(reply).encode(errors="replace")  # half a surrogate pair is no UTF-8


def _limit_memory(extra: int) -> None:
    """Allow ``extra`` bytes of address space beyond what is in use now (Linux)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + extra
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
