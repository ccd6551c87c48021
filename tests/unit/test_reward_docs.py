"""The examples of the documentation, as a reader would use them."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, blocks

from eggroll_rl.config import RewardConfig, ScoringConfig
from eggroll_rl.scoring import Scorer


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A folder with every block that is a file."""
    for block in (*blocks("docs/rewards.md"), *blocks("docs/sigma_and_lr.md")):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    return tmp_path


def score(spec: str, completions: list[str], columns: dict[str, list[Any]] | None = None) -> list[float]:
    prompts = ["question"] * len(completions)
    with Scorer([RewardConfig(fn=spec)], ScoringConfig(on_error="raise")) as scorer:
        scorer.probe(prompts, columns or {})
        return scorer([completions], prompts, columns or {}).rewards_NP[0].tolist()


@pytest.fixture
def service() -> Iterator[str]:
    """Scores a text by its length over 10, once at least two requests are there."""
    both = threading.Barrier(2, timeout=20)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
            both.wait()
            body = json.dumps({"score": len(text) / 10}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_pattern(examples: Path) -> None:
    completions = ["1. add\n2. divide\nso 4", "no steps", "\n".join(f"{n}. step" for n in range(9))]
    assert score(f"{examples}/pattern.py:numbered_steps", completions) == [0.4, 0.0, 1.0]


def test_an_exact_answer(examples: Path) -> None:
    completions = ["it is 4.", "it is 5", "four", "", "7"]
    found = score(f"{examples}/exact.py:same_number", completions, {"answer": ["4", 4, "4", 4, None]})
    assert found[:4] == [1.0, 0.0, 0.0, 0.0]
    assert found[4] != found[4]  # None: does not apply


def test_a_service_is_asked_concurrently(examples: Path, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_URL", service)
    assert score(f"{examples}/service.py:judged", ["a", "bb", "ccc", "dddd"]) == [0.1, 0.2, 0.3, 0.4]


def test_the_step_that_a_run_took(examples: Path) -> None:
    records = [{"generation": 0, "accuracy": 0.5}, *({"generation": n, "update_rms": n * 1e-5} for n in range(4))]
    (examples / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = [sys.executable, str(examples / "update_rms.py"), str(examples), "1e-4"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "median step 2.0e-05; for 1.0e-04 multiply optimizer.lr by 5\n"  # a step of 0 does not count


def test_every_reward_named_exists() -> None:
    specs = set(re.findall(r"`(eggroll_rl\.rewards\.\w+:\w+)`", PAGES["docs/rewards.md"].read_text(encoding="utf-8")))
    assert len(specs) == 8
    with Scorer([RewardConfig(fn=spec) for spec in sorted(specs)]) as scorer:
        scorer.check(["answer", "metadata", "numbers", "target"])
