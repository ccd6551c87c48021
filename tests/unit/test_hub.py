"""Names on the hub where there is no network: one line, soon, and nothing heavy imported for it."""

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from eggroll_rl.system.hub import PATIENCE

RECIPE = "{model: %s, data: {name: %s, prompt: '{q}'}, rewards: [{fn: 'eggroll_rl.rewards.countdown:countdown'}]}"
NOWHERE, HERE = "some/nowhere", "embedded:rwkv7-countdown"
CODE = """
import logging, sys, time
from eggroll_rl.cli import main
start = time.monotonic()
try:
    main()
finally:
    print(sorted({"torch", "transformers", "datasets"} & set(sys.modules)))
    print(time.process_time(), time.monotonic() - start)
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def distrusted(tmp_path: Path) -> Iterator[str]:
    """A server whose certificate nobody has signed but itself."""
    names = ["-keyout", "key.pem", "-out", "certificate.pem", "-subj", "/CN=localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def settings_of(case: str, silent: str) -> dict[str, str]:
    return {
        "refused": {"HF_ENDPOINT": "http://127.0.0.1:9"},
        "silent": {"HF_ENDPOINT": silent},
        "proxy": {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": "http://127.0.0.1:9"},
        "unknown": {"HF_ENDPOINT": "https://hub.invalid"},
        "offline": {"HF_HUB_OFFLINE": "1"},
    }[case]


def run(code: str, folder: Path, settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    place = {"HF_HOME": str(folder), "PATH": os.environ["PATH"], "HOME": str(folder)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=settings | place, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("case", ["refused", "silent", "proxy", "unknown", "offline"])
@pytest.mark.parametrize("names", [(NOWHERE, "countdown"), (HERE, NOWHERE)])
def test_a_name_that_is_not_cached_is_one_line_within_seconds(
    tmp_path: Path, silent: str, names: tuple[str, str], case: str
) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE % names)
    done = run(CODE, tmp_path, settings_of(case, silent), "train", "mine.yaml")
    loaded, seconds = done.stdout.splitlines()
    computed, elapsed = map(float, seconds.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cannot find")
    assert "some/nowhere" in line
    assert ("HF_HUB_OFFLINE is set" if case == "offline" else "does not answer") in line
    assert loaded == "[]"
    assert computed + PATIENCE < 3  # of a processor; others may want it too
    assert elapsed < 10


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", NOWHERE, "x"),
        ("evaluate", NOWHERE),
        ("verify", NOWHERE),
        ("bench", "--model", NOWHERE),
        ("train", "countdown_tiny", f"model={NOWHERE}"),
        ("plan", "countdown_tiny", f"model={NOWHERE}"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_says_so_before_the_heavy_imports(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(CODE, tmp_path, {"HF_ENDPOINT": "http://127.0.0.1:9"}, *arguments)
    loaded, seconds = done.stdout.splitlines()
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert NOWHERE in line
    assert "does not answer" in line
    assert loaded == "[]"
    assert float(seconds.split()[0]) + PATIENCE < 3


def test_a_server_without_a_trusted_certificate_is_not_asked_again_and_again(tmp_path: Path, distrusted: str) -> None:
    done = run(CODE, tmp_path, {"HF_ENDPOINT": distrusted}, "ask", NOWHERE, "x")
    (line,) = done.stderr.splitlines()
    assert f"{distrusted} has no certificate that is trusted here" in line
    assert float(done.stdout.splitlines()[1].split()[0]) + 2 * PATIENCE < 4


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (501, True), (502, False), (504, False)])
def test_who_answers_is_asked(tmp_path: Path, status: int, answers: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    code = (
        "import os; from eggroll_rl.system.hub import why_offline as why; print(why(), 'HF_HUB_OFFLINE' in os.environ)"
    )
    done = run(code, tmp_path, {"HF_ENDPOINT": endpoint})
    server.shutdown()
    server.server_close()
    assert done.stdout.strip() == ("None False" if answers else f"{endpoint} does not answer True")


def test_the_cache_serves_where_nobody_answers(tmp_path: Path) -> None:
    """A model's configuration in the hub's cache, as the hub's library lays it out."""
    snapshot = tmp_path / "hub" / "models--some--where" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    code = "from eggroll_rl.models.naming import locate_model; print(locate_model('some/where'))"
    done = run(code, tmp_path, {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (done.stdout, done.stderr) == ("some/where\n", "")
