"""The Hugging Face hub: if it cannot be reached, its cache is used at once, without half a minute of retries."""

import logging
import os
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from ssl import SSLError
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from eggroll_rl.system.errors import UsageError

logger = logging.getLogger(__name__)

PATIENCE = 1.25  # seconds in which the hub must answer, name look-up included
GATEWAYS = (502, 503, 504)  # HTTP codes of a proxy that does not reach the hub
ENDPOINT = "https://huggingface.co"


def endpoint() -> str:
    """The URL of the hub."""
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


@cache
def why_offline() -> str | None:
    """The reason not to ask the hub, as text; None if it can be asked.

    If the hub does not answer, this switches its libraries to offline mode, here and in child processes: they have no
    setting for how often they retry. A user's ``HF_HUB_OFFLINE`` is respected.
    """
    import huggingface_hub.constants

    if "HF_HUB_OFFLINE" in os.environ:
        return "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else None
    fault = _fault()
    if fault is None:
        return None
    os.environ["HF_HUB_OFFLINE"] = "1"
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # read once, at the import of both
    if datasets := sys.modules.get("datasets"):
        datasets.config.HF_HUB_OFFLINE = True
    return f"{endpoint()} {fault}"


def fetch(name: str, file: str) -> Path:
    """Download a file of a model from the hub, or take it from the cache; returns its path.

    Raises:
        UsageError: it is not to be had; the message gives the reason alone, for the caller to complete.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, HFValidationError

    offline = why_offline()
    try:
        path = Path(hf_hub_download(name, file))
    except GatedRepoError as error:
        terms = f"{endpoint()}/{name}"
        raise UsageError(f"it is gated: accept its terms at {terms} and log in by `hf auth login`") from error
    except HFValidationError as error:
        raise UsageError("this is no valid name on a hub") from error
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        if offline:
            raise UsageError(f"the cache lacks it, and {offline}") from error
        raise UsageError(f"{endpoint()} has no {file} under that name that you may read") from error
    if offline:
        logger.info("%s is taken from the cache: %s", name, offline)
    return path


def refuse_unknown_dataset(name: str) -> None:
    """Raise UsageError where no dataset of that name is in the caches, and the hub cannot be asked for it."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return  # a path, which is checked where it is read
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    offline = why_offline()
    caches = (Path(HF_HUB_CACHE), Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets"))
    known = {_letters(folder.name.removeprefix("datasets--")) for cache in caches for folder in cache.glob("*")}
    if offline and _letters(name) not in known:
        raise UsageError(f"cannot find the dataset {name!r}: the cache lacks it, and {offline}; name a file or folder")


def _letters(name: str) -> str:
    """Letters and digits of a name, lower case: the caches write the rest of it differently."""
    return "".join(filter(str.isalnum, name.lower()))


def _fault() -> str | None:
    """What keeps the hub from being asked, as the end of a sentence; None: it answers."""
    found: list[str | None] = []

    def ask() -> None:
        try:
            urlopen(Request(endpoint(), method="HEAD"), timeout=PATIENCE).close()
            found.append(None)
        except HTTPError as error:
            found.append("does not answer" if error.code in GATEWAYS else None)
        except OSError as error:
            is_distrusted = isinstance(getattr(error, "reason", error), SSLError)
            found.append(_fault_of_certificate() if is_distrusted else "does not answer")

    attempt = Thread(target=ask, daemon=True)  # looking up a name takes no timeout
    attempt.start()
    attempt.join(PATIENCE)
    return found[0] if found else "does not answer"


def _fault_of_certificate() -> str | None:
    """The same of a server whose certificate Python does not trust: the hub's library may have other authorities."""
    from huggingface_hub.utils import get_session

    client = get_session()
    library = import_module(type(client).__module__.partition(".")[0])  # httpx, or its successor
    try:
        client.head(endpoint(), timeout=PATIENCE)
    except library.HTTPError:
        return "has no certificate that is trusted here"
    return None
