"""Detects frozen processes in a launch: each sends a sign of life every second, over a socket.

A process that is stopped, swapped out or cut off cannot answer a collective call, and those that wait for it would wait
for ever. The first process listens, the others connect to it.
"""

import logging
import os
import time
from multiprocessing.connection import Client, Connection, Listener
from threading import Thread
from typing import NamedTuple, NoReturn

BEAT = 1.0  # seconds between two signs of life

logger = logging.getLogger(__name__)


class Address(NamedTuple):
    """Where the first process listens on the launch's ``MASTER_ADDR``, and the key that others must know."""

    port: int
    key: bytes


def listen(others: int, deadline: float) -> Address:
    """In the first process: wait in the background for ``others`` processes, and end this one where one falls silent.

    Returns:
        what each of them calls ``connect`` with.
    """
    key = os.urandom(32)
    listener = Listener(("", 0), backlog=others, authkey=key)
    address = Address(listener.address[1], key)

    def accept() -> None:
        for _ in range(others):
            Thread(target=_beat, args=(listener.accept(), None, deadline), daemon=True).start()

    Thread(target=accept, daemon=True, name="eggroll-rl: heartbeat").start()
    return address


def connect(address: Address, rank: int, deadline: float) -> None:
    """In any other process: answer in the background, and end this process where the first one falls silent."""
    host = os.environ["MASTER_ADDR"]
    try:
        connection = Client((host, address.port), authkey=address.key)
    except OSError as error:
        logger.warning(
            "a frozen first process will not be noticed: no connection to %s:%d: %s", host, address.port, error
        )
        return
    Thread(target=_beat, args=(connection, rank, deadline), daemon=True, name="eggroll-rl: heartbeat").start()


def _beat(connection: Connection, rank: int | None, deadline: float) -> None:
    """Exchange signs of life until the peer ends; the first process (``rank`` None) learns its peer's rank by them."""
    peer = "the first process" if rank is not None else "a process"
    while True:
        try:
            connection.send(rank)
            if not connection.poll(deadline):
                _end(f"{peer} of the launch has given no sign of life for {deadline:g} s (engine.deadline)")
            said = connection.recv()
        except (EOFError, OSError):
            return  # it has ended, which the launcher notices
        if rank is None:
            peer = f"process {said}"
        time.sleep(BEAT)


def _end(message: str) -> NoReturn:
    """End this process at once: its main thread waits inside a collective call that no exception reaches."""
    logger.error("%s; generations in the journal are safe: go on with --resume", message)
    logging.shutdown()
    os._exit(1)
