"""Examples: which ones a generation sees, how they are split and rendered, and what the user is told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from eggroll_rl.config import DataConfig
from eggroll_rl.data.countdown import is_held_out
from eggroll_rl.data.dataset import Batch, load_data, shuffled
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
    (tmp_path / "rows.csv").write_text("question,answer\n1,2\n")
    assert "of single files only .jsonl is read" in failure(DataConfig(name=str(tmp_path / "rows.csv")))
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
