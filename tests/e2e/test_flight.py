"""The measurements on a GPU: the same legs on the CPU, shrunk, and the page that says what they found."""

import json
from pathlib import Path

import pytest
import torch
import typer

from benchmarks.flight import SMALL, Leg, fly, legs, main, page_of
from eggroll_rl.system.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_all_legs_arrive_and_the_page_says_so(tmp_path: Path) -> None:
    names = legs(tmp_path, SMALL).keys()
    with pytest.raises(typer.Exit) as ended:
        main(tmp_path, size="small")
    assert ended.value.exit_code == 0
    flight = json.loads((tmp_path / "flight.json").read_text())
    assert flight.keys() == {"device", "torch", *names}
    assert flight["tests"]["passed"] and not flight["tests"]["failed"]
    assert flight[f"throughput-{SMALL.shapes[0]}"]["ratios"]["population / base"] > 0
    assert {run["method"] for run in flight["learning"]["runs"]} == {"eggroll", "grpo"}
    assert flight["egg"]["curve"][-1]["updates"] == 3
    page = (tmp_path / "gpu.md").read_text()
    for said in ("population / base", "| eggroll |", "bits per byte", f"{flight['tests']['passed']} passed"):
        assert said in page


def test_a_leg_that_arrived_is_not_flown_again_and_one_that_failed_is(tmp_path: Path) -> None:
    said: list[str] = []
    mark = tmp_path / "mark"
    script = (
        f"import pathlib, sys; p = pathlib.Path({str(mark)!r}); p.touch(); sys.exit(not p.with_name('mended').exists())"
    )
    leg = Leg([["python3", "-c", script]], lambda: {"found": 1})
    assert not fly("leg", leg, tmp_path, said.append)
    assert not (tmp_path / "leg.json").exists() and "leg.log" in said[-1]
    (tmp_path / "mended").touch()
    assert fly("leg", leg, tmp_path, said.append)
    assert json.loads((tmp_path / "leg.json").read_text())["found"] == 1
    mark.unlink()
    assert fly("leg", leg, tmp_path, said.append) and not mark.exists()


def test_without_a_device_it_does_not_take_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"no CUDA device here.*--size small"):
        main(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_leg_that_is_none_is_refused_before_any_flies(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--only moon is no leg: choose from tests, throughput-"):
        main(tmp_path / "out", size="small", only=["tests", "moon"])
    assert not (tmp_path / "out").exists()


def test_the_page_of_the_site_is_that_of_its_figures() -> None:
    flown = json.loads((DOCS / "gpu_h200.json").read_text())
    assert (DOCS / "gpu.md").read_text() == page_of(flown)
    assert not flown["tests"]["failed"]
