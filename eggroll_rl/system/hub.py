"""The Hugging Face hub: where it cannot be reached, its cache serves at once, without half a minute of retries."""

import logging
import os
import socket
from contextlib import suppress
from functools import cache
from threading import Event, Thread
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds for a name and a connection
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")  # behind one, the host itself need not be reachable


@cache
def prefer_cache_offline() -> None:
    """Have the hub's libraries work offline, here and in child processes, where the hub does not answer.

    The libraries have a switch for this, but no setting for how often they retry. What the user has set stays.
    """
    if "HF_HUB_OFFLINE" in os.environ or any(os.environ.get(name) for name in PROXIES) or _is_reachable():
        return
    import huggingface_hub.constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # read once, at the import of both
    with suppress(ModuleNotFoundError):
        import datasets

        datasets.config.HF_HUB_OFFLINE = True
    logger.info("the Hugging Face hub cannot be reached: its cache is used alone")


def _is_reachable() -> bool:
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    address, reached = (endpoint.hostname or "", endpoint.port or (80 if endpoint.scheme == "http" else 443)), Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection(address, timeout=PATIENCE):
            reached.set()

    attempt = Thread(target=connect, daemon=True)  # looking up a name takes no timeout
    attempt.start()
    attempt.join(PATIENCE)
    return reached.is_set()
