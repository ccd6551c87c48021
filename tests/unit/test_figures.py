"""The page of figures says of each commit what was kept of it."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
hook = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "hooks" / "figures.py")))


def result(model: str, speed: float) -> dict[str, object]:
    return {
        "model": model,
        "members": 8,
        "rows_per_member": 2,
        "tokens": 64,
        "tokens_per_second": {"population": speed, "base": 2 * speed, "generate": 500.0, "full_rank": 1.0},
        "ratios": {"population / base": 0.5},
        "environment": {"torch": "2.13.0", "threads": 2, "machine": ""},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for commit, date, speed in (("bbb", "2026-01-03", 1234.0), ("aaa", "2026-02-01", 4321.0)):
        results = [result("small", speed), *([result("some/large", 7.0)] if commit == "aaa" else [])]
        (tmp_path / f"{commit}.json").write_text(json.dumps({"commit": commit, "date": date, "results": results}))
    return tmp_path


def test_each_commit_has_its_row_the_newest_first(folder: Path) -> None:
    files = hook.kept(folder)
    assert hook.models(files) == ["small", "some/large"]
    text = hook.page(files)
    newer = "| `aaa` | 2026-02-01 | 4,321 | 8,642 | 500 | 0.50 | 64 | 2.13.0, 2 |"
    older = "| `bbb` | 2026-01-03 | 1,234 | 2,468 | 500 | 0.50 | 64 | 2.13.0, 2 |"
    assert 0 < text.index(newer) < text.index(older) < text.index("## some/large")
    assert f"({hook.picture_of('some/large')})" in text
    assert hook.picture_of("some/large") == "figures_some_large.svg"


def test_a_picture_names_the_commits(folder: Path) -> None:
    image = hook.drawn(hook.measured(hook.kept(folder), "small")).decode()
    ElementTree.fromstring(image)
    assert image.index("<!-- bbb -->") < image.index("<!-- aaa -->")


def test_what_is_kept_in_the_repository_can_be_shown() -> None:
    files = hook.kept(ROOT / "benchmarks" / "figures")
    assert files
    assert all(f"| `{one['commit']}` | {one['date']} |" in hook.page(files) for one in files)
