"""``eggroll-rl bench``: every figure is there, and follows from what was timed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import eggroll

from eggroll_rl.planning import interleaved as interleaved_module
from eggroll_rl.planning.interleaved import interleaved


def test_all_steps_take_their_turn_in_every_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    now, turns = 0.0, []
    monkeypatch.setattr(interleaved_module.time, "perf_counter", lambda: now)
    takes = {"fast": iter([9.0, 1.0, 2.0, 3.0]), "slow": iter([9.0, 4.0, 4.0, 6.0])}

    def step(name: str, makes: int) -> Callable[[], int]:
        def call() -> int:
            nonlocal now
            now += next(takes[name])
            turns.append(name)
            return makes

        return call

    timed = interleaved({"fast": step("fast", 10), "slow": step("slow", 5)}, repeats=3, warm_ups=1)
    assert turns == ["fast", "slow"] * 4
    assert timed.seconds == {"fast": [1.0, 2.0, 3.0], "slow": [4.0, 4.0, 6.0]}
    assert timed.median("slow") == 4.0
    assert timed.speed("fast") == 5.0
    assert timed.ratio("fast", "slow") == 10 / 5 * 2.0  # the median of 4, 2 and 2


@pytest.mark.parametrize(("takes", "rounds"), [(1.0, 13), (60.0, 5)])
def test_rounds_go_on_for_a_while_where_nobody_counts_them(
    monkeypatch: pytest.MonkeyPatch, takes: float, rounds: int
) -> None:
    now = 0.0
    monkeypatch.setattr(interleaved_module.time, "perf_counter", lambda: now)

    def step() -> int:
        nonlocal now
        now += takes
        return 1

    timed = interleaved({"one": step, "other": step}, repeats=None)
    assert [len(seconds) for seconds in timed.seconds.values()] == [rounds, rounds]


@pytest.mark.parametrize(("architecture", "full"), [("rwkv7", True), ("llama", False)])
def test_a_benchmark_of_any_model(
    tmp_path: Path, model_folder: Callable[[str], Path], architecture: str, full: bool
) -> None:
    model = str(model_folder(architecture))
    options = ("--members", "4", "--rows", "2", "--tokens", "16", "--repeats", "2", *(["--full"] if full else []))
    done = eggroll(tmp_path, "bench", "--model", model, *options, "--json", "out/bench.json", "--picture", "bench.png")
    assert done.code == 0, done.err
    [result] = json.loads((tmp_path / "out" / "bench.json").read_text())
    seconds, speed, ratios = result["seconds"], result["tokens_per_second"], result["ratios"]
    assert (result["members"], result["rows_per_member"], result["tokens"]) == (4, 2, 16)
    assert speed["base"] == pytest.approx(4 * 2 * 16 / seconds["base"])
    assert speed.keys() >= {"base", "population", "matrix_products", "base, lengths spread"}
    assert ("generate" in speed) == ("base / transformers.generate" in ratios) == full
    if full:
        assert speed["full_rank"] == pytest.approx(2 * 16 / seconds["full_rank"])  # one member
    assert speed["matrix_products"] == pytest.approx(4 * 2 * 8 / seconds["matrix_products"])  # eight steps
    assert ratios["base / matrix products"] > 0  # below 1 on an idle machine
    assert 0 < result["shares"]["noise, of a generation"] < 1
    for name in ratios:
        assert name in done.out
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_a_benchmark_of_integers(tmp_path: Path) -> None:
    options = ("--members", "8", "--tokens", "16", "--repeats", "3", "--json", "bench.json", "--picture", "bench.png")
    done = eggroll(tmp_path, "bench", "--model", "egg-64x2", *options)
    assert done.code == 0, done.err
    [result] = json.loads((tmp_path / "bench.json").read_text())
    seconds, speed = result["seconds"], result["tokens_per_second"]
    assert (result["members"], result["tokens"]) == (8, 16)
    assert speed["population"] == pytest.approx(8 * 16 / (seconds["read"] + seconds["update"]))
    assert speed["reading alone"] == pytest.approx(8 * 16 / seconds["read"])
    assert 0 < result["ratios"]["reading / bare int8 products"] < 1
    assert result["shares"]["update, of a generation"] == pytest.approx(
        seconds["update"] / (seconds["read"] + seconds["update"])
    )
    for name in (*result["ratios"], "peak memory", "bare int8 products, tokens/s"):
        assert name in done.out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [(("--rows", "2"), "--rows 2: each member of egg reads one stream"), (("--members", "7"), "--members 7: ")],
)
def test_what_integers_cannot_do_is_refused(tmp_path: Path, options: tuple[str, ...], complaint: str) -> None:
    done = eggroll(tmp_path, "bench", "--model", "egg", *options)
    assert done.code and complaint in done.err
