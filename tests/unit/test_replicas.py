"""The time model against a pool written out, and timings read back from metrics that were made of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from eggroll_rl.cli import app
from eggroll_rl.config import PoolConfig, Recipe
from eggroll_rl.engines.fleet.sharing import portion
from eggroll_rl.planning.forecast import Forecast, Timings, forecast, load_timings, scaling
from eggroll_rl.runs.journal import Header, Journal
from eggroll_rl.system.errors import UsageError

TIMINGS = Timings(rollout=0.01, chunk=0.5, score=1e-4, update=2.0, members=256, call=1e-3)


def recipe_of(size: int = 256, prompts: int = 8, antithetic: bool = True, chunk: int | None = None) -> Recipe:
    return Recipe.model_validate(
        {
            "model": "embedded:rwkv7-countdown",
            "data": {"prompts": prompts},
            "rewards": [{"fn": "eggroll_rl.rewards.text:exact_match"}],
            "population": {"size": size, "antithetic": antithetic},
            "engine": {"pool": {"chunk": chunk}},
        }
    )


@given(st.integers(2, 99), st.integers(2, 40), st.integers(1, 30), st.booleans())
def test_chunks_go_to_whoever_is_free_first(members: int, replicas: int, chunk: int, antithetic: bool) -> None:
    size = 2 * members if antithetic else members
    step = chunk + chunk % 2 if antithetic else chunk
    sizes = [min(step, size - first) for first in range(0, size, step)]
    ends = [0.0] * replicas
    for each in sizes:
        free = min(range(replicas), key=ends.__getitem__)
        ends[free] += TIMINGS.chunk + each * 8 * TIMINGS.rollout
    seen = forecast(recipe_of(size, 8, antithetic, chunk), TIMINGS, replicas)
    assert seen.generate == pytest.approx(max(ends))
    assert seen.calls == pytest.approx((len(sizes) + replicas) * TIMINGS.call)


def test_one_replica_is_an_engine_without_a_pool() -> None:
    seen = forecast(recipe_of(), TIMINGS, 1)
    assert seen == pytest.approx(Forecast(1, 256, 0.5 + 256 * 8 * 0.01, 256 * 8 * 1e-4, 0.0, 2.0))
    assert forecast(recipe_of(512), TIMINGS, 1).update == 4.0
    assert seen.total == pytest.approx(sum(seen[2:]))


def test_where_the_update_takes_over() -> None:
    """Without a cost of chunks, two chunks for each replica: 20.48 s / R of answers against 2 s of update."""
    timings = TIMINGS.model_copy(update={"chunk": 0.0})
    shown, said = scaling(recipe_of(chunk=2), timings, 100)
    assert [one.replicas for one in shown] == [1, 2, 4, 8, 16, 32, 64, 100, 128, 256, 512, 1024]
    first, second, third = said
    # 128 chunks of 0.16 s: eleven replicas do them in twelve rounds (1.92 s), ten in thirteen (2.08 s)
    assert "from 11 replicas on" in first
    assert "with 128 replicas" in second  # one chunk each; more replicas only cost calls
    assert "second --bench" in third

    quick = TIMINGS.model_copy(update={"update": 0.1})
    assert "up to 1024 replicas, answering takes longer" in next(scaling(recipe_of(), quick, 1)[1])


def run_of(folder: Path, size: int, timings: Timings, pool: bool = False) -> Path:
    """A run whose metrics take what ``timings`` say, but for its first and for odd generations."""
    recipe = recipe_of(size)
    if not pool:
        recipe = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"pool": None})})
    folder.mkdir()
    Journal.create(folder / "journal.jsonl", Header(recipe=recipe, base_sha256="0")).close()
    exact = {
        "seconds_generate": timings.chunk + size * 8 * timings.rollout,
        "seconds_score": size * 8 * timings.score,
        "seconds_update": timings.update * size / timings.members,
    }
    records: list[dict[str, Any]] = [
        {"generation": 0, "accuracy": 0.5},
        {"seconds_generate": 99.0, "seconds_score": 99.0},
    ]
    for factor in (50.0, 1.0, 0.5, 1.0, 3.0):
        records.append({key: value * factor for key, value in exact.items()})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_timings_are_fitted_to_runs(tmp_path: Path) -> None:
    small, large = run_of(tmp_path / "small", 64, TIMINGS), run_of(tmp_path / "large", 256, TIMINGS)
    assert load_timings([small, large]).model_dump() == pytest.approx(TIMINGS.model_dump())
    alone = load_timings([large])
    assert alone.model_dump() == pytest.approx({**TIMINGS.model_dump(), "chunk": 0.0, "rollout": 0.01 + 0.5 / 2048})


def test_timings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(TIMINGS.model_dump_json())
    assert load_timings([path]) == TIMINGS
    path.write_text('{"rollout": 0, "scoring": 1}')
    with pytest.raises(UsageError, match=r"rollout: .*greater than 0.*scoring: .*the keys rollout, chunk, score"):
        load_timings([path])
    path.write_text("[")
    with pytest.raises(UsageError, match="Invalid JSON"):
        load_timings([path])


def test_what_cannot_be_fitted_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run nor a JSON file"):
        load_timings([tmp_path / "nothing"])
    with pytest.raises(UsageError, match="ran in a pool"):
        load_timings([run_of(tmp_path / "pool", 64, TIMINGS, pool=True)])
    short = run_of(tmp_path / "short", 64, TIMINGS)
    (short / "metrics.jsonl").write_text('{"generation": 0}\n')
    with pytest.raises(UsageError, match="fewer than two generations"):
        load_timings([short])


def test_the_command_prints_a_row_for_each(tmp_path: Path, model_folder: Any) -> None:
    bench = tmp_path / "bench.json"
    bench.write_text(TIMINGS.model_dump_json())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_of().model_dump_json(exclude={"output_dir"}))
    model = f"model={model_folder('llama')}"
    result = CliRunner().invoke(
        app, ["plan", str(recipe), model, "sampling.max_new_tokens=48", "--replicas", "24", "--bench", str(bench)]
    )
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines() if line.split()[-1:] and line.split()[0].isdecimal()]
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8, 16, 24, 32, 64, 128, 256, 512, 1024]
    assert rows[0][1:4] == ["256", "21.0", "s"]
    assert "the update that each replica repeats" in result.output


def test_portions_do_not_depend_on_replicas_where_a_chunk_is_set() -> None:
    assert {portion(PoolConfig(replicas=replicas, chunk=6), 100) for replicas in (1, 7, 500)} == {6}
    assert [portion(PoolConfig(replicas=replicas), 100) for replicas in (1, 7, 500)] == [50, 8, 1]
    assert portion(PoolConfig(chunk=6), 100, unit=8) == 48
