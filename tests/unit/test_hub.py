"""Names on the hub where there is no network: one line, soon."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

SETTINGS = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}  # nothing listens there
MODEL = "from eggroll_rl.models.loading import load_tokenizer as find; arguments = ('some/nowhere',)"
DATA = (
    "from eggroll_rl.config import DataConfig; from eggroll_rl.data.dataset import load_data as find; import datasets;"
    "arguments = (DataConfig(name='some/nowhere'), 0)"
)
CALL = """
import time, logging
from eggroll_rl.system.errors import UsageError
logging.basicConfig(level=logging.WARNING)
{find}
start = time.monotonic()
try:
    find(*arguments)
except UsageError as error:
    print(error)
print(time.monotonic() - start)
"""


@pytest.mark.parametrize("find", [MODEL, DATA])
def test_a_name_that_is_not_cached_is_one_line_within_seconds(tmp_path: Path, find: str) -> None:
    path = {"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CALL.format(find=find)], env=SETTINGS | path, capture_output=True, text=True, check=True
    )
    message, seconds = done.stdout.splitlines()
    assert "some/nowhere" in message
    assert float(seconds) < 3
    assert done.stderr == ""


def test_what_listens_is_asked(tmp_path: Path) -> None:
    code = """
import os, socket
from eggroll_rl.system.hub import prefer_cache_offline
server = socket.create_server(("127.0.0.1", 0))
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.getsockname()[1]}"
prefer_cache_offline()
print("HF_HUB_OFFLINE" in os.environ)
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert time.monotonic() - start < 60
