"""The journal, snapshots and signals: what is written comes back, and damage is found and contained."""

import errno
import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import Tensor

from eggroll_rl.config import OptimizerConfig, PopulationConfig, Recipe, RewardConfig
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.noise import NOISE_VERSION, Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.population import Population
from eggroll_rl.es.tensors import Held, Piece
from eggroll_rl.es.update import GradientLearner, Update
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Entry, Header, Journal
from eggroll_rl.runs.journal import records as records_module
from eggroll_rl.runs.journal.snapshots import Snapshot, Snapshots, load_snapshot
from eggroll_rl.system.durable import json_text, replace_file, replace_folder
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.interrupts import Interrupted, StopSignals

MEMBERS = 6
RECIPE = Recipe(
    model="some/model",
    rewards=(RewardConfig(fn="eggroll_rl.rewards.text:exact_match"),),
    population=PopulationConfig(size=MEMBERS),
    seed=7,
)


def make_entry(generation: int) -> Entry:
    generator = torch.Generator().manual_seed(generation)
    weights = tuple(torch.randn(MEMBERS, generator=generator, dtype=torch.float64).tolist())
    update = Update(Population(7, generation, RECIPE.population), weights, 0.1 / (generation + 3))
    sample = {"completion": 'quotes ", a break\n, ", "crc32": "0", half a pair \ud83e and 蛋'}
    return Entry(update, {"generation": generation, "seconds": generation + 0.1, "reward_mean": None}, [sample])


def make_journal(path: Path, generations: int = 3) -> Path:
    with Journal.create(path, Header(recipe=RECIPE, base_sha256="ab" * 32)) as journal:
        journal.append_evaluation(0, 0.0, {"accuracy": 0.5})
        for generation in range(generations):
            journal.append(make_entry(generation))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_journal(tmp_path / "journal.jsonl")


def test_every_number_comes_back_exactly(path: Path) -> None:
    with Journal(path, append=True) as journal:
        journal.append_hash(3, "cd")
        journal.append_end("cd", 4.5)
    journal = Journal(path)
    assert journal.recipe == RECIPE
    assert len(journal) == journal.ended == 3
    assert list(journal.entries()) == [make_entry(generation) for generation in range(3)]
    assert list(journal.entries(1, 2)) == [make_entry(1)]
    assert journal.evaluations == {0: {"generation": 0, "seconds": 0.0, "accuracy": 0.5}}
    assert journal.hashes == {3: "cd"}
    assert (journal.seconds, list(journal.remaining(5))) == (4.5, [3, 4])


def test_lines_are_plain_json(path: Path) -> None:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["kind"] for record in records] == ["run", "evaluation", "update", "update", "update"]
    assert records[-1]["weights"] == list(make_entry(2).update.weights)


def test_a_torn_last_record_is_dropped_wherever_it_was_torn(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = path.read_bytes()
    before = whole.rindex(b"\n", 0, -1) + 1
    for size in range(before + 1, len(whole)):
        caplog.clear()
        path.write_bytes(whole[:size])
        assert len(Journal(path)) == 2
        assert "line 5" in caplog.text
        assert path.read_bytes() == whole[:size]  # a reader changes nothing
    with Journal(path, append=True) as journal:
        journal.append(make_entry(2))
    assert path.read_bytes() == whole


def test_blocks_that_never_reached_the_disk_tear_the_last_record(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes(40))
    assert len(Journal(path)) == 2


def test_a_flipped_bit_anywhere_is_found(path: Path) -> None:
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    starts = [0, *(index + 1 for index, byte in enumerate(whole[:-1]) if byte == ord("\n"))]
    for position in range(0, len(whole), 3):
        for bit in (0, 3):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            if position >= last:
                assert len(Journal(path)) == 2
                continue
            line = sum(start <= position for start in starts)
            with pytest.raises(UsageError, match=rf"line {line} "):
                Journal(path, append=True)
            assert path.read_bytes() == damaged


def test_a_line_break_lost_between_records_is_damage_and_not_a_torn_end(path: Path) -> None:
    whole = path.read_bytes()
    for position in [index for index, byte in enumerate(whole[:-1]) if byte == ord("\n")]:
        path.write_bytes(whole[:position] + b"x" + whole[position + 1 :])
        with pytest.raises(UsageError, match="damaged"):
            Journal(path)


@pytest.mark.parametrize("line", [2, 3])
def test_a_missing_update_is_named(path: Path, line: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    with pytest.raises(UsageError, match=f"generation {line - 2} is missing, that of {line - 1} comes"):
        Journal(path)


def test_what_cannot_be_opened_for_records_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} cannot be written"):
        records_module.Records(tmp_path, append=True)


@pytest.mark.parametrize(("version", "remedy"), [(NOISE_VERSION + 1, "upgrade"), (NOISE_VERSION - 1, "install")])
def test_noise_of_another_version_is_refused(tmp_path: Path, version: int, remedy: str) -> None:
    header = Header(recipe=RECIPE, base_sha256="ab", noise_version=version)
    with pytest.raises(UsageError, match=f"noise version {version}.*{remedy}"):
        Journal.create(tmp_path / "journal.jsonl", header)


def test_a_recipe_of_another_release_is_refused(path: Path) -> None:
    header, *records = path.read_bytes().splitlines(keepends=True)
    newer = json.loads(header)
    del newer["crc32"]
    newer |= {"package_version": "9.9", "recipe": newer["recipe"] | {"telepathy": True}}
    path.write_bytes(records_module.record_line(newer) + b"".join(records))
    with pytest.raises(UsageError, match=r"install 9\.9"):
        Journal(path)


@pytest.mark.parametrize("lines", [0, 1])
def test_a_file_without_a_header_is_refused(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:][:lines]))
    with pytest.raises(UsageError, match="does not begin with the header"):
        Journal(path)


def test_another_base_model_is_named_with_both_hashes(path: Path) -> None:
    with pytest.raises(UsageError, match=f"some/model.*{'cd' * 32}.*{'ab' * 32}"):
        Journal(path).check_base("cd" * 32)


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_leaves_the_records_before(path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    whole, write = path.read_bytes(), os.write

    def fail(descriptor: int, data: Any = None) -> int:
        if data is not None:
            write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(path, append=True) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(records_module.os, failing, fail)
            with pytest.raises(UsageError, match="No space left on device"):
                journal.append(make_entry(3))
        assert path.read_bytes() == whole
        assert len(journal) == 3
        journal.append(make_entry(3))
    assert list(Journal(path).entries(3)) == [make_entry(3)]


def test_one_process_appends_and_others_may_read(path: Path) -> None:
    with Journal(path, append=True):
        assert len(Journal(path)) == 3
        with pytest.raises(UsageError, match="another process"):
            Journal(path, append=True)
    with Journal(path, append=True) as journal:
        assert len(journal) == 3


def test_a_hash_that_differs_in_a_replay_is_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Journal(path, append=True) as journal:
        journal.append_hash(2, "first")
        journal.append_hash(2, "first")
        assert not caplog.records
        journal.append_hash(2, "second")
        assert "first" in caplog.text
        assert "second" in caplog.text
    assert Journal(path).hashes == {2: "first"}


def make_snapshot(generation: int) -> Snapshot:
    state = {"master.w": torch.full((4, 3), float(generation)), "step.w": torch.tensor(float(generation))}
    return Snapshot(generation, f"hash {generation}", state)


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    kept = Snapshots(tmp_path / "snapshots", keep=2)
    for generation in (5, 10, 15):
        kept.save(make_snapshot(generation))
    return kept


HASHES = {generation: f"hash {generation}" for generation in (5, 10, 15)}


def test_the_newest_snapshots_are_kept_and_come_back(snapshots: Snapshots) -> None:
    assert list(snapshots.paths()) == [10, 15]
    for at_most, generation in ((99, 15), (15, 15), (14, 10)):
        found = snapshots.newest(at_most, HASHES)
        assert found is not None
        assert found.generation == generation
        assert tensors_hash(found.state) == tensors_hash(make_snapshot(generation).state)
    assert snapshots.newest(9, HASHES) is None


def test_a_snapshot_of_the_future_does_not_push_out_the_present(snapshots: Snapshots) -> None:
    snapshots.save(make_snapshot(12))
    assert list(snapshots.paths()) == [10, 12, 15]


class Ending(Held):
    """Tensors that cannot all be read."""

    def __init__(self, tensors: Mapping[str, Tensor], error: BaseException):
        super().__init__(tensors)
        self.error = error

    def read(self, shard: Sequence[Piece]) -> Iterator[Tensor]:
        yield from super().read(shard[:1])
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left"), (UsageError, "00000020.safetensors cannot be written: No space left")),
        (UsageError("vLLM's processes died"), (UsageError, "vLLM's processes died")),
        (KeyboardInterrupt(), (KeyboardInterrupt, "^$")),
    ],
)
def test_a_snapshot_that_ends_half_way_leaves_the_older_ones(
    snapshots: Snapshots, error: BaseException, told: tuple[type[BaseException], str]
) -> None:
    with pytest.raises(told[0], match=told[1]):
        snapshots.save(make_snapshot(20)._replace(state=Ending(make_snapshot(20).state, error)))
    assert sorted(path.name for path in snapshots.folder.iterdir()) == [f"{g:08d}.safetensors" for g in (10, 15)]
    found = snapshots.newest(99, HASHES)
    assert found is not None
    assert found.generation == 15


def test_a_snapshot_has_the_state_of_the_engine_and_that_of_the_objective(tmp_path: Path) -> None:
    engine, objective = {"master.w": torch.ones(2, 3)}, {"seen": torch.tensor(5), "w": torch.zeros(0, 2)}
    kept = Snapshots(tmp_path, keep=1)
    kept.save(Snapshot.of(4, "hash", engine, objective))
    found = load_snapshot(kept.paths()[4])
    assert tensors_hash(found.of_engine()) == tensors_hash(engine)
    assert tensors_hash(found.of_objective()) == tensors_hash(objective)


@pytest.mark.parametrize("damage", ["truncated", "empty", "data", "metadata", "renamed", "foreign"])
def test_a_bad_snapshot_gives_way_to_an_older_one(
    snapshots: Snapshots, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = snapshots.paths()[15]
    content, hashes = path.read_bytes(), HASHES
    if damage == "truncated":
        path.write_bytes(content[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "data":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif damage == "metadata":
        path.write_bytes(content.replace(b'"15"', b'"1x"'))
    elif damage == "renamed":
        path.rename(path.with_name("00000016.safetensors"))
    else:
        hashes = HASHES | {15: "another"}
    found = snapshots.newest(99, hashes)
    assert found is not None
    assert found.generation == 10
    assert "passed over" in caplog.text


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        if path.stem == "folder":
            path.mkdir()
            path /= "inside"
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_text("old")
    with pytest.raises(UsageError, match="file cannot be written: No space left"):
        replace_file(tmp_path / "file", fail)
    with pytest.raises(UsageError, match="folder cannot be written: No space left"):
        replace_folder(tmp_path / "folder", fail)
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


ERRORS = [OSError(errno.ENOSPC, "No space left"), Exception("No space left"), RuntimeError("No space left")]


@pytest.mark.parametrize("error", [*ERRORS, SafetensorError("No space left"), UsageError("No space left")])
@pytest.mark.parametrize("replace", [replace_file, replace_folder])
def test_whatever_a_saver_raises_is_told_and_its_half_goes_away(tmp_path: Path, replace: Any, error: Exception) -> None:
    def fail(path: Path) -> None:
        if replace is replace_folder:
            path.mkdir()
        (path / "inside" if path.is_dir() else path).write_text("half")
        raise error

    with pytest.raises(UsageError, match="No space left"):
        replace(tmp_path / "it", fail)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_saver_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        replace_file(tmp_path / "it", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_on_a_full_disk_is_told(tmp_path: Path, tokenizer: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UsageError, match=r"model cannot be written: .*File too large"):
            replace_folder(tmp_path / "model", tokenizer.save_pretrained)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_is_written_is_json_whatever_the_numbers(value: Any) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json_text(value).encode("utf-8", "backslashreplace")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == plain(value)


def test_an_update_is_taken_back(path: Path) -> None:
    before = path.read_bytes()
    with Journal(path, append=True) as journal:
        journal.append(make_entry(3))
        journal.retract()
        assert path.read_bytes() == before
        journal.append(make_entry(3))
    assert list(Journal(path).entries(3)) == [make_entry(3)]


def test_data_of_another_fingerprint_is_refused_where_one_was_noted(path: Path, tmp_path: Path) -> None:
    Journal(path).check_data("ab")  # noted nothing
    header = Header(recipe=RECIPE, base_sha256="cd", data_sha256="ab")
    with Journal.create(tmp_path / "other.jsonl", header) as journal:
        journal.check_data("ab")
        with pytest.raises(UsageError, match=r"the data of countdown changed since this run began: .* cd, .* ab; put"):
            journal.check_data("cd")


def test_metrics_and_samples_are_cut_back_to_a_generation(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    evaluation = {"seconds": 0.0, "accuracy": 0.5}
    for generation in range(4):
        if generation % 2 == 0:
            run.log_evaluation({"generation": generation, **evaluation})
        entry = make_entry(generation)
        run.log_generation(entry._replace(samples=[{"generation": generation}] * 2), update_rms=0.1)
    with run.metrics_file.open("a") as file:
        file.write('{"generation": 4, "reward_me')  # torn
    assert run.generations_logged() == 4
    run.rewind(2)
    assert [record["generation"] for record in run.metrics()] == [0, 0, 1]
    assert len(run.samples_file.read_text().splitlines()) == 4
    run.rewind(0)
    assert not run.metrics()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_replay_gives_the_same_bits_on_any_number_of_threads(optimizer: Any) -> None:
    evolved = [
        EvolvedParameter("wide.weight", (64, 256), "lowrank"),
        EvolvedParameter("odd.weight", (301, 137), "lowrank"),
        EvolvedParameter("bias", (1000,), "dense"),
    ]
    population = Population(0, 0, PopulationConfig(size=1024, rank=2))
    weights = tuple(torch.randn(1024, generator=torch.Generator().manual_seed(0)).tolist())
    hashes, threads = set(), torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            parameters = {parameter.name: torch.ones(parameter.shape) for parameter in evolved}
            learner = GradientLearner(parameters, evolved, OptimizerConfig(name=optimizer), Noise(0, rank=2))
            learner.step(Update(population, weights, 0.01))
            hashes.add(tensors_hash(learner.state_dict()))
    finally:
        torch.set_num_threads(threads)
    assert len(hashes) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_is_held(number: signal.Signals, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(partial(signal.signal, number, signal.getsignal(number)))
    signal.signal(number, signal.default_int_handler)  # a job in the background ignores SIGINT, and so may this one
    before, done = signal.getsignal(number), False
    with pytest.raises(Interrupted) as caught, StopSignals() as signals:
        with signals.held():
            signal.raise_signal(number)
            done = True
        raise AssertionError("not reached")
    assert done
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_signal_acts_at_once_where_nothing_is_held() -> None:
    with pytest.raises(Interrupted), StopSignals():
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not reached")


def test_a_second_signal_kills() -> None:
    code = """if True:
        import signal
        from eggroll_rl.system.interrupts import StopSignals
        with StopSignals() as signals, signals.held():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGTERM


@pytest.fixture(autouse=True)
def _capture_warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
