"""Examples: which ones a generation sees, how they are split and rendered, and what the user is told."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll_rl.config import DataConfig, Half
from eggroll_rl.data import checking, sources
from eggroll_rl.data.countdown import is_held_out
from eggroll_rl.data.dataset import HALVES, Batch, Dataset, load_data, shuffled
from eggroll_rl.data.generated import Exhausted
from eggroll_rl.data.template import Template
from eggroll_rl.system.errors import UsageError

ROWS = [{"question": f"{i} + {i}?", "answer": 2 * i} for i in range(100)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def jsonl(tmp_path: Path) -> str:
    return write(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Hugging Face dataset in a folder, with two splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", ROWS)
    write(
        tmp_path / "folder" / "test.jsonl", [{"question": "1 + 1?", "answer": 2}, {"question": "2 + 1?", "answer": 3}]
    )
    return str(tmp_path / "folder")


def failure(config: DataConfig) -> str:
    with pytest.raises(UsageError) as error:
        load_data(config, seed=0)
    return str(error.value)


# Which examples a generation sees.


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order() -> None:
    walk = [index for generation in range(10) for index in shuffled(7, generation * 5, 5, 25)]
    assert sorted(walk[:25]) == sorted(walk[25:]) == list(range(25))
    assert walk[:25] != walk[25:]
    assert walk == shuffled(7, 0, 50, 25)  # batches that straddle epochs, or hold several, are parts of one walk
    assert walk[3:48] == shuffled(7, 3, 45, 25)


def test_shuffles_are_uniform_and_depend_on_all_64_bits_of_the_seed() -> None:
    firsts = [shuffled(seed, 0, 1, 10)[0] for seed in range(1000)]
    assert all(60 < firsts.count(index) < 140 for index in range(10))  # 100 +- 4 standard deviations
    assert shuffled(1, 0, 100, 100) != shuffled(1 + 2**63, 0, 100, 100)


def test_batches_are_a_function_of_seed_and_generation(jsonl: str) -> None:
    config = DataConfig(name=jsonl, prompts=8, prompt="{question}")
    forward, backward = load_data(config, seed=1), load_data(config, seed=1)
    in_order = [forward.batch(generation) for generation in range(30)]
    assert in_order == [backward.batch(generation) for generation in reversed(range(30))][::-1]
    assert in_order[0] != load_data(config, seed=2).batch(0)


def test_a_batch_is_rows_of_the_source(jsonl: str) -> None:
    data = load_data(DataConfig(name=jsonl, prompts=8, prompt="Q: {question}"), seed=1)
    batch = data.batch(3)
    assert data.columns == ["question", "answer"]
    assert set(batch.columns) == {"question", "answer"}
    for prompt, question, answer, index in zip(batch.prompts, *batch.columns.values(), batch.indices, strict=True):
        assert {"question": question, "answer": answer} == data.train[index]
        assert prompt == f"Q: {question}"


def test_jsonl_is_split_by_content(tmp_path: Path) -> None:
    config = DataConfig(name=write(tmp_path / "a.jsonl", ROWS), prompts=200, prompt="{question}")
    train, held_out = split_questions(config)
    assert train | held_out == {row["question"] for row in ROWS}
    assert not train & held_out
    assert 2 <= len(held_out) <= 22  # 10 +- 4 standard deviations
    shuffled_copies = [dict(reversed(row.items())) for row in ROWS[::-1]] * 2
    more = [{"question": f"{i}?", "answer": i, "note": None} for i in range(50)]
    again = config.model_copy(update={"name": write(tmp_path / "b.jsonl", shuffled_copies + more), "prompts": 1000})
    train_again, held_out_again = split_questions(again)
    assert not train_again & held_out_again
    assert train <= train_again
    assert held_out <= held_out_again


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=2), st.booleans())
def test_what_is_asked_stands_on_one_side(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int]], by_group: bool
) -> None:
    rows = [{"q": question, "variant": variant, "id": number} for number, (question, variant) in enumerate(drawn)]
    name = write(tmp_path_factory.getbasetemp() / "asked.jsonl", rows)
    group, prompt = ("q", "{q} {variant}") if by_group else (None, "{q}?")
    config = DataConfig(name=name, prompt=prompt, group=group, prompts=len(rows))
    if len({question for question, _ in drawn}) == 1:
        assert "holds only one distinct row, none to hold out" in failure(config)
        return
    data = load_data(config, seed=0)
    train, held_out = ([row["q"] for row in side] for side in (data.train, data.held_out))
    assert not set(train) & set(held_out)
    assert sorted([*train, *held_out]) == sorted(question for question, _ in drawn)
    assert [data.train[index] for index in range(len(data.train))] == list(data.train)
    halves = [half_of(data, half, len(rows)) for half in HALVES]
    assert not set(halves[0]) & set(halves[1])
    assert sorted([*halves[0], *halves[1]]) == sorted(held_out) == sorted(data.test(len(rows)).columns["q"])


def test_questions_of_both_files_are_warned_of(jsonl: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held_out = write(tmp_path / "held.jsonl", [{"question": "new?", "answer": 0, "id": 1}, {**ROWS[3], "id": 2}])
    with caplog.at_level(logging.WARNING):
        load_data(DataConfig(name=jsonl, test_name=held_out, prompt="{question}"), seed=0)
        assert "1 of the 2 held-out questions of" in caplog.text
        caplog.clear()
        load_data(DataConfig(name=jsonl, prompt="{question}"), seed=0)
        load_data(DataConfig(name=held_out, test_name=held_out, prompt="{question}"), seed=0)
    assert not caplog.text


def split_questions(config: DataConfig) -> tuple[set[str], set[str]]:
    data = load_data(config, seed=0)
    return set(data.batch(0).columns["question"]), set(data.test(10**6).columns["question"])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_small_files_have_both_sides(tmp_path: Path, count: int) -> None:
    name = write(tmp_path / "few.jsonl", ROWS[:count])
    train, held_out = split_questions(DataConfig(name=name, prompts=count, prompt="{question}"))
    assert train
    assert held_out
    assert len(train) + len(held_out) == count


def test_a_test_file_keeps_its_order_and_leaves_all_rows_for_training(jsonl: str, tmp_path: Path) -> None:
    test_rows = [{"question": "last?", "answer": 1}, {"answer": 0, "question": "first?", "more": 3}]
    config = DataConfig(
        name=jsonl, test_name=write(tmp_path / "test.jsonl", test_rows), prompts=100, prompt="{question}"
    )
    data = load_data(config, seed=0)
    assert data.test(2) == Batch(["last?", "first?"], {"question": ["last?", "first?"], "answer": [1, 0]}, [0, 1])
    assert data.test(1).indices == [0]
    assert data.test(3) == data.test(2)
    assert data.test(0) == Batch([], {"question": [], "answer": []}, [])
    assert sorted(data.batch(0).columns["answer"]) == [row["answer"] for row in ROWS]


def test_a_dataset_folder_and_its_split_slices(folder: str) -> None:
    data = load_data(DataConfig(name=folder, prompts=100, prompt="{question}"), seed=0)
    assert sorted(data.batch(0).columns["answer"]) == [row["answer"] for row in ROWS]
    assert data.test(10).columns == {"question": ["1 + 1?", "2 + 1?"], "answer": [2, 3]}
    config = DataConfig(name=folder, split="train[:90%]", test_split="train[90%:]", prompts=90, prompt="{question}")
    sliced = load_data(config, seed=0)
    assert sorted(sliced.batch(0).columns["answer"]) == list(range(0, 180, 2))
    assert sliced.test(100).columns["answer"] == list(range(180, 200, 2))


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_single_files_are_read_and_split_as_jsonl_is(
    ending: str, jsonl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = datasets.Dataset.from_list(ROWS)
    getattr(table, f"to_{ending}")(file := str(tmp_path / f"rows.{ending}"))
    config = DataConfig(name=file, prompts=100, prompt="{question}")
    one, other = load_data(config, seed=0), load_data(config.model_copy(update={"name": jsonl}), seed=0)
    assert one.batch(3) == other.batch(3)
    assert one.test(100) == other.test(100)
    assert one.fingerprint() == other.fingerprint()
    assert "data.split='dev' is for Hugging Face datasets" in failure(config.model_copy(update={"split": "dev"}))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json", "parquet"])
def test_folders_of_files_are_a_dataset_or_divided_as_a_file_is(
    ending: str, jsonl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files named by their split, in one folder or under ``data``; parts of one split; the suffix in any case."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def put(path: Path, rows: list[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_list(rows)
        getattr(table, "to_json" if ending == "jsonl" else f"to_{ending}")(str(path))

    expected = load_data(DataConfig(name=jsonl, prompts=100, prompt="{question}"), seed=0)
    for pattern in ("named/{}.", "named-below/data/{}-00000-of-00001."):
        put(tmp_path / (pattern.format("train") + ending), ROWS[:90])
        put(tmp_path / (pattern.format("test") + ending), ROWS[90:])
        name = str(tmp_path / pattern.split("/")[0])
        data = load_data(DataConfig(name=name, prompts=90, prompt="{question}"), seed=0)
        assert sorted(data.batch(0).columns["answer"]) == list(range(0, 180, 2))
        assert data.test(100).columns["answer"] == list(range(180, 200, 2))
    for part, rows in (("a", ROWS[:30]), ("b", ROWS[30:])):
        put(tmp_path / "parts" / f"{part}.{ending}", rows)
    put(tmp_path / f"ROWS.{ending.upper()}", ROWS)
    for name in ("parts", f"ROWS.{ending.upper()}"):
        data = load_data(DataConfig(name=str(tmp_path / name), prompts=100, prompt="{question}"), seed=0)
        assert data.batch(3) == expected.batch(3)
        assert data.test(100) == expected.test(100)
    put(tmp_path / "parts" / f"validation.{ending}", ROWS[:3])  # which of the two is to be held out is the user's say
    put(tmp_path / "parts" / f"train.{ending}", ROWS)
    message = failure(DataConfig(name=str(tmp_path / "parts"), prompt="{question}"))
    assert "Unknown split \"test\". Should be one of ['train', 'validation']" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", b""),
        ("rows.csv", b"question,answer\n"),
        ("rows.json", b""),
        ("rows.json", b"[]"),
        ("rows.json", b"{]"),
        ("rows.csv", b"question,answer\na,1\nb,2,3\n"),
        ("rows.csv", "question,answer\nä,1\n".encode("latin-1")),
        ("rows.parquet", b""),
        ("rows.parquet", b"not a parquet file"),
    ],
)
def test_a_file_that_holds_no_rows_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, content: bytes
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / name).write_bytes(content)
    message = failure(DataConfig(name=str(tmp_path / name), prompt="{question}"))
    assert name in message
    assert "\n" not in message
    assert not caplog.records


def test_an_empty_split_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    empty = datasets.Dataset.from_list(ROWS).select([])
    (tmp_path / "set").mkdir()
    empty.to_parquet(tmp_path / "set" / "train.parquet")
    empty.to_parquet(tmp_path / "set" / "test.parquet")
    message = failure(DataConfig(name=str(tmp_path / "set"), prompt="{question}"))
    assert "(subset None, split 'train')" in message
    assert "no data" in message
    (tmp_path / "set" / "train.jsonl").write_text("\n")
    assert "\n" not in failure(DataConfig(name=str(tmp_path / "set"), prompt="{question}"))


class TestManyRows:
    """Rows that no pass gets through before the run begins."""

    @pytest.fixture(autouse=True)
    def hurry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checking, "PATIENCE", 0.0)

    def config(self, tmp_path: Path, bad: int) -> DataConfig:
        rows = [{"prompt": f"question {number}" if number != bad else 3} for number in range(3000)]
        held_out = write(tmp_path / "held.jsonl", [{"prompt": "held out"}])
        return DataConfig(name=write(tmp_path / "many.jsonl", rows), test_name=held_out, prompts=2)

    def test_the_first_row_at_fault_ends_the_run_before_it_is_asked(self, tmp_path: Path) -> None:
        data = load_data(self.config(tmp_path, bad=2500), seed=0)
        with pytest.raises(UsageError, match=r"row 2501 of .*many\.jsonl: the prompt 3 is neither text nor chat"):
            for generation in range(1500):
                data.batch(generation)

    def test_sound_rows_are_all_passed(self, tmp_path: Path) -> None:
        data = load_data(self.config(tmp_path, bad=-1), seed=0)
        assert len({prompt for generation in range(1500) for prompt in data.batch(generation).prompts}) == 3000
        data.checked.wait()
        assert data.checked.is_over


def test_countdown_seeds_and_splits_share_no_problem() -> None:
    config = DataConfig(prompts=50)
    first, second = load_data(config, seed=1), load_data(config, seed=2**63 + 2)
    assert first.columns == ["prompt", "numbers", "target"]
    assert first.batch(3) == load_data(config, seed=1).batch(3)
    indices = [i for data in (first, second) for generation in range(3) for i in data.batch(generation).indices]
    assert len(set(indices)) == 300
    assert max(indices) < 2**63
    assert first.batch(0).prompts != second.batch(0).prompts
    held_out = first.test(50)
    assert held_out == second.test(50)
    assert held_out.indices == list(range(50))
    for batch, side in ((first.batch(0), False), (second.batch(9), False), (held_out, True)):
        pairs = zip(batch.columns["numbers"], batch.columns["target"], strict=True)
        assert all(is_held_out(numbers, target) is side for numbers, target in pairs)


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("apart", [2**31, 2**32, 2**63])
def test_seeds_share_no_problems_wherever_they_differ(seed: int, apart: int) -> None:
    config = DataConfig(prompts=40, high=100)
    one, other = (load_data(config, seed + offset).batch(2).prompts for offset in (0, apart))
    assert len({*one, *other}) == 80


def test_countdown_with_a_template_and_new_names() -> None:
    config = DataConfig(prompts=1, prompt="{nums} -> {target}", columns={"nums": "numbers"})
    data = load_data(config, seed=0)
    batch = data.batch(0)
    assert set(data.columns) == {"prompt", "nums", "target"}
    assert batch.prompts == [f"{batch.columns['nums'][0]} -> {batch.columns['target'][0]}"]


def test_countdown_may_be_tested_on_a_file(tmp_path: Path) -> None:
    problems = [{"prompt": "1, 2 to 3", "numbers": [1, 2], "target": 3}]
    data = load_data(DataConfig(test_name=write(tmp_path / "held.jsonl", problems)), seed=0)
    assert data.test(9).prompts == ["1, 2 to 3"]


# How prompts are rendered.


def render(tmp_path: Path, row: dict[str, Any], prompt: Any = None, **data: Any) -> Any:
    name = write(tmp_path / "row.jsonl", [row])
    return load_data(DataConfig(name=name, test_name=name, prompt=prompt, **data), seed=0).test(1).prompts[0]


def test_values_are_inserted_as_they_are(tmp_path: Path) -> None:
    row = {"question": r"\frac{1}{2} of {answer} {0} {{", "answer": [3, 4], "a.b": 1.5, "two words": "x"}
    prompt = 'Give {{"n": 1}}: {question}\n{answer}|{a.b}|{two words}'
    assert render(tmp_path, row, prompt) == 'Give {"n": 1}: \\frac{1}{2} of {answer} {0} {{\n[3, 4]|1.5|x'


def test_chat_templates_and_chat_columns(tmp_path: Path) -> None:
    template = [{"role": "system", "content": "{{}}"}, {"role": "user", "content": "{q}{q}"}]
    assert render(tmp_path, {"q": 7}, template) == [
        {"role": "system", "content": "{}"},
        {"role": "user", "content": "77"},
    ]
    chat = [{"role": "user", "content": "{not a template}"}]
    assert render(tmp_path, {"prompt": chat}) == chat
    assert render(tmp_path, {"prompt": "{plain}"}) == "{plain}"
    assert render(tmp_path, {"problem": "{plain}"}, columns={"prompt": "problem"}) == "{plain}"


@given(
    system=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}")),
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_a_system_message_goes_before(system: str, text: str) -> None:
    row: dict[str, Any] = {"q": text, "prompt": text, "n": 7, "chat": [{"role": "user", "content": text}]}
    expected = [{"role": "system", "content": f"{system}7}}"}, {"role": "user", "content": text}]
    as_chat = [{"role": "user", "content": "{q}"}]
    for prompt in ("{q}", None, "{chat}", as_chat, [{"role": "user", "content": "{chat}"}]):
        template = Template(prompt, f"{system}{{n}}}}}}")
        assert template(row) == expected
        assert template.fields["n"] == "data.system"
    prefilled = Template([*as_chat, {"role": "assistant", "content": "So"}], system.replace("{", ""))(row)
    assert [message["role"] for message in prefilled if isinstance(message, dict)] == ["system", "user", "assistant"]


def test_a_wrong_system_message_is_named(jsonl: str, tmp_path: Path) -> None:
    chat = write(tmp_path / "chat.jsonl", [{"prompt": [{"role": "system", "content": f"{i}"}]} for i in range(9)])
    config = DataConfig(name=jsonl, prompt="{question}", system="{topic}")
    assert "data.system names a column 'topic' that does not exist" in failure(config)
    assert "data.system: {} must hold a column's name" in failure(config.model_copy(update={"system": "\\boxed{}"}))
    assert "has a system message already: drop data.system" in failure(DataConfig(name=chat, system="be brief"))
    other = load_data(config.model_copy(update={"system": "be brief"}), 0)
    assert other.fingerprint() != load_data(config.model_copy(update={"system": None}), 0).fingerprint()


def test_a_template_may_name_a_renamed_column_either_way(tmp_path: Path) -> None:
    row = {"nums": [1, 2], "target": 3}
    for name in ("nums", "numbers"):
        assert render(tmp_path, row, f"{{{name}}} to {{target}}", columns={"numbers": "nums"}) == "[1, 2] to 3"
    assert render(tmp_path, {"a": 1, "b": 2}, "{a} {b}", columns={"a": "b", "b": "a"}) == "2 1"


def test_fields_within_columns(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "a"}],
        "reward_model": {"style": "rule", "ground_truth": {"target": 3}},
        "answers": [{"text": "x"}, {"text": "y"}],
        "extra.info": 7,
    }
    name = write(tmp_path / "rows.jsonl", [row])
    columns = {
        "answer": "reward_model.ground_truth.target",
        "second": "answers.1.text",
        "plain": "extra.info",
        "parts": "reward_model.ground_truth",
    }
    config = DataConfig(name=name, test_name=name, columns=columns)
    shown = load_data(config, seed=0).test(1).columns
    assert shown["answer"] == [3]
    assert shown["second"] == ["y"]
    assert shown["plain"] == [7]
    assert shown["parts"] == [{"target": 3}]
    assert shown["reward_model"] == [row["reward_model"]]
    assert render(tmp_path, row, "{reward_model.ground_truth.target} {answers.0.text} {extra.info}") == "3 x 7"
    for wrong in ("reward_model.truth", "answers.2.text", "answers.text", "prompt.0.content.upper", "nothing.x"):
        wrong_config = config.model_copy(update={"columns": {"answer": wrong}})
        assert f"data.columns renames {wrong!r}, which is not a column of" in failure(wrong_config)
        wrong_config = config.model_copy(update={"columns": {}, "prompt": f"{{{wrong}}}"})
        assert f"data.prompt names a column {wrong!r} that does not exist" in failure(wrong_config)
    assert "data.group names a column 'set'" in failure(config.model_copy(update={"group": "set"}))


def test_renaming_replaces_the_old_names(tmp_path: Path) -> None:
    name = write(tmp_path / "row.jsonl", [{"problem": "p", "solution": "s", "answer": "long", "id": 3}])
    config = DataConfig(
        name=name, test_name=name, prompt="{question}", columns={"question": "problem", "answer": "solution"}
    )
    assert load_data(config, seed=0).test(1).columns == {"answer": ["s"], "id": [3], "question": ["p"]}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("{questoin}", "data.prompt names a column 'questoin' that does not exist: the columns of"),
        ("{questoin}", "are question, answer"),
        ("{question.__class__}", "names a column 'question.__class__' that does not exist"),
        ("{question[0]}", "names a column 'question[0]' that does not exist"),
        ("{0}", "names a column '0' that does not exist"),
        ("{}", "{} must hold a column's name and nothing else"),
        ("{question!r}", "{question} must hold a column's name and nothing else"),
        ("{question:>{answer}}", "{question} must hold a column's name and nothing else"),
        ("{question", "write {{ and }} for literal braces"),
        ("question}", "write {{ and }} for literal braces"),
        ('{"n": 1}', "write {{ and }} for literal braces"),
        ([], "a chat is a list of messages, each with a role and a content"),
        ([{"role": "user"}], "a chat is a list of messages, each with a role and a content"),
        (None, "no column 'prompt': the columns of"),
        (None, "set data.prompt to a template such as '{question}'"),
    ],
)
def test_a_wrong_template_is_named(jsonl: str, prompt: Any, expected: str) -> None:
    assert expected in failure(DataConfig(name=jsonl, prompt=prompt))


# What a user's mistakes are called.


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "rows.jsonl is empty; write one JSON object a line"),
        (b"\n  \n", "rows.jsonl is empty"),
        (b'{"prompt": "a"}\n\n{"prompt": \n', "rows.jsonl, line 3: not JSON: Expecting value at column"),
        (b'{"prompt": "a"}\n["b"]\n', "rows.jsonl, line 2: ['b'] is not an object"),
        (b'{"prompt": "\xff"}\n', "rows.jsonl: not UTF-8 text"),
        (b'{"prompt": "a"}\n{"prompt": "a"}\n', "holds only one distinct row, none to hold out"),
        (b'{"prompt": "a"}\n{"answer": 3}\n', "column 'prompt' has no value in the row {'answer': 3, 'prompt': None}"),
        (b'{"prompt": "a"}\n{"prompt": 3}\n', "the prompt 3 is neither text nor chat messages"),
        (b'{"prompt": "a"}\n{"prompt": [{"text": "b"}]}\n', "is neither text nor chat messages"),
        (b'{"prompt": "a"}\n{"prompt": "b", "completions": 1}\n', "column 'completions' of"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert expected in failure(DataConfig(name=str(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize("text", ["cut \ud83d", "\udc00", "a\ud83d b"])
def test_half_a_character_is_named(tmp_path: Path, text: str) -> None:
    rows = [{"prompt": "whole \U0001f600"}, {"prompt": text}]
    message = failure(DataConfig(name=write(tmp_path / "rows.jsonl", rows)))
    assert message.startswith(f"row 2 of {tmp_path}/rows.jsonl: the prompt")
    assert "holds half a character" in message
    message.encode()
    chat = [{"role": "user", "content": "{prompt}"}]
    assert "half a character" in failure(DataConfig(name=write(tmp_path / "rows.jsonl", rows), prompt=chat))


@given(st.lists(st.text(st.characters()), min_size=2, max_size=30, unique=True))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    name = write(tmp_path_factory.getbasetemp() / "any.jsonl", [{"prompt": text} for text in texts])
    try:
        data = load_data(DataConfig(name=name, prompts=len(texts)), seed=0)
        asked = {*data.test(100).prompts, *data.batch(0).prompts}
    except UsageError as error:
        assert "\n" not in str(error)
        assert any("\ud800" <= character <= "\udfff" for text in texts for character in text)
    else:
        assert asked == set(texts)


def test_a_byte_order_mark_and_unicode_separators_are_text(tmp_path: Path) -> None:
    rows = '\ufeff{"prompt": "one\u2028line"}\r\n{"prompt": "é"}\n'
    (tmp_path / "rows.jsonl").write_bytes(rows.encode())
    name = str(tmp_path / "rows.jsonl")
    assert load_data(DataConfig(name=name, test_name=name), seed=0).test(2).prompts == ["one\u2028line", "é"]


def test_a_wrong_source_is_named(jsonl: str, folder: str, tmp_path: Path) -> None:
    template = {"prompt": "{question}"}
    assert "no file nowhere.jsonl" in failure(DataConfig(name="nowhere.jsonl"))
    assert "data.split='main' is for Hugging Face datasets" in failure(DataConfig(split="main"))
    assert "data.test_split='dev' is for Hugging Face" in failure(DataConfig(name=jsonl, test_split="dev", **template))
    assert "renames 'q', which is not a column" in failure(DataConfig(name=jsonl, columns={"question": "q"}))
    other = write(tmp_path / "other.jsonl", [{"question": "a"}])
    message = failure(DataConfig(name=jsonl, test_name=other, **template))
    assert message == f"the held-out examples of {other} lack ['answer'], which {jsonl} has; add the columns"
    (tmp_path / "rows.txt").write_text("question,answer\n1,2\n")
    assert "a single file must be one of .jsonl, .csv, .json, .parquet" in failure(
        DataConfig(name=f"{tmp_path}/rows.txt")
    )
    assert "'train[:90'" in failure(DataConfig(name=folder, split="train[:90", **template))
    assert "Unknown split \"dev\". Should be one of ['train', 'test']" in failure(
        DataConfig(name=folder, test_split="dev", **template)
    )
    assert "are both 'train'; take say train[:90%] and train[90%:]" in failure(
        DataConfig(name=folder, test_split="train", **template)
    )
    assert '"train[:0]" corresponds to no data' in failure(DataConfig(name=folder, split="train[:0]", **template))
    assert "(subset None, split 'train'): Couldn't find any data file" in failure(DataConfig(name=f"{folder}/missing"))


def test_an_unreachable_dataset_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach 'org/set' on the Hub (OfflineModeIsEnabled)\nTry again.")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(sources, "refuse_unknown_dataset", lambda name: None)  # as where the hub answers
    message = failure(DataConfig(name="org/set", subset="main"))
    assert message.startswith(
        "cannot load the dataset 'org/set' (subset 'main', split 'train'): Couldn't reach 'org/set'"
    )
    assert "\n" not in message


def test_countdown_needs_no_heavy_library() -> None:
    code = (
        "import sys; from eggroll_rl.config import DataConfig; from eggroll_rl.data.dataset import load_data;"
        "load_data(DataConfig(), 0).batch(0); print({'torch', 'datasets', 'transformers'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"


def test_the_fingerprint_is_of_the_rows_their_split_and_their_template(jsonl: str, tmp_path: Path) -> None:
    def fingerprint(rows: list[dict[str, Any]] = ROWS, **changes: Any) -> str:
        name = write(tmp_path / "now.jsonl", rows)
        config = DataConfig(**{"name": name, "prompt": "{question}", **changes})
        return load_data(config, seed=0).fingerprint()

    one = fingerprint()
    assert one == fingerprint() == fingerprint(name=jsonl, prompts=3)  # neither the file's name nor the batch counts
    changed = [*ROWS[:50], {**ROWS[50], "answer": 1}, *ROWS[51:]]
    held_out = write(tmp_path / "held.jsonl", ROWS[:3])
    others = [
        fingerprint(changed),
        fingerprint(ROWS[:-1]),
        fingerprint(ROWS[::-1]),  # generations would see other rows
        fingerprint(test_name=held_out),
        fingerprint(prompt="{question} "),
        fingerprint(columns={"target": "answer"}),
        fingerprint(name="countdown", prompt=None),
        fingerprint(name="countdown", prompt=None, high=9),
    ]
    assert len({one, *others}) == 9
    assert fingerprint(name="countdown", prompt=None) == others[6]


def half_of(data: Dataset, half: Half, n: int) -> list[Any]:
    """The questions of a half; none where that is empty."""
    try:
        return data.test(n, half).columns["q"]
    except UsageError as error:
        assert f"the half for {half}" in str(error)
        return []


def test_the_halves_of_generated_problems_are_alike_and_share_none() -> None:
    """Of so few problems that a half has not enough, each has its own; both are as hard, by the size of the targets."""
    few = load_data(DataConfig(numbers=(3,)), 0)
    tuning, judgement = (few.test(10**6, half) for half in HALVES)
    assert not set(tuning.prompts) & set(judgement.prompts)
    assert len(tuning.prompts) + len(judgement.prompts) == count_held_out(few)
    means = [sum(half.columns["target"]) / len(half.prompts) for half in (tuning, judgement)]
    assert means[0] == pytest.approx(means[1], rel=0.1)
    assert few.test(8, "tuning").prompts == tuning.prompts[:8]


def count_held_out(data: Dataset) -> int:
    with pytest.raises(Exhausted) as raised:
        data.test(10**6)
    return raised.value.count
