"""``EggrollTrainer``: scripts written for TRL's GRPO train, and what trains is the run of a recipe."""

import asyncio
import inspect
import json
import math
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, PreTrainedModel, TrainerCallback
from trl.rewards import accuracy_reward, get_cosine_scaled_reward, get_repetition_penalty_reward, think_format_reward

from eggroll_rl import EggrollConfig, EggrollTrainer
from eggroll_rl.config import load_recipe
from eggroll_rl.models.loading import load_model
from eggroll_rl.report import write_report
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.rebuild import verify
from eggroll_rl.system.errors import UsageError
from eggroll_rl.train import resume, train

ROWS = Dataset.from_list([{"prompt": f"{i} + {i} =", "answer": str(i % 10)} for i in range(40)])
CHATS = Dataset.from_list(
    [{"prompt": [{"role": "user", "content": f"{i} + {i}?"}], "solution": f"\\boxed{{{2 * i}}}"} for i in range(24)]
)
SMALL: dict[str, Any] = {
    "max_steps": 6,
    "population_size": 8,
    "sigma": 0.05,
    "prompts_per_generation": 2,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "logging_steps": 2,
    "use_cpu": True,
}


def digits(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [len(set(text)) / 8 + text.count(wanted) for text, wanted in zip(completions, answer, strict=True)]


def weights(folder: str | Path) -> str:
    with RunFolder(Path(folder)).journal() as journal:
        assert journal.ended is not None
        return journal.hashes[journal.ended]


@pytest.fixture
def trainer(model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., EggrollTrainer]:
    """``trainer(name of the run, options and arguments that differ)``."""

    def made(name: str, **changes: Any) -> EggrollTrainer:
        options = {key: changes.pop(key) for key in list(changes) if key in EggrollConfig.__dataclass_fields__}
        reward = partial(digits)  # so that nothing is imported for it
        given = {"model": str(model_folder("llama")), "reward_funcs": reward, "train_dataset": ROWS}
        return EggrollTrainer(args=EggrollConfig(str(tmp_path / name), **(SMALL | options)), **(given | changes))

    return made


def test_the_recipe_that_a_trainer_prints_gives_the_same_weights(
    trainer: Callable[..., EggrollTrainer], tmp_path: Path
) -> None:
    importable = "eggroll_rl.rewards.text:exact_match"
    ours = trainer(
        "ours", reward_funcs=[importable, partial(digits)], eval_dataset=ROWS.select(range(5)), temperature=0.9
    )
    ours.train()
    recipe = load_recipe(tmp_path / "ours" / "recipe.yaml", [f"output_dir={tmp_path / 'theirs'}"])
    assert load_recipe(tmp_path / "ours" / "recipe.yaml") == ours.recipe
    with pytest.raises(UsageError, match=r"given:digits.*path/file\.py:digits"):
        train(recipe)
    source = f"from typing import Any\n\n\n{inspect.getsource(digits)}"
    (tmp_path / "mine.py").write_text(source)
    named = [recipe.rewards[0], recipe.rewards[1].model_copy(update={"fn": f"{tmp_path / 'mine.py'}:digits"})]
    train(recipe.model_copy(update={"rewards": tuple(named)}))
    assert weights(tmp_path / "ours") == weights(tmp_path / "theirs")
    assert all(finding.fault is None for finding in verify(tmp_path / "ours"))


@pytest.mark.parametrize("place", ["reward", "callback"])
@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_notebook_goes_on_and_ends_as_if_it_had_not_been(
    trainer: Callable[..., EggrollTrainer], place: str, step: int
) -> None:
    trainer("whole").train()
    calls = count()

    def reward(completions: list[str], answer: list[str], trainer_state: Any, **_: Any) -> list[float]:
        if place == "reward" and trainer_state.global_step == step and next(calls) == 0:
            raise KeyboardInterrupt  # what the kernel's stop button raises in the main thread
        return digits(completions, answer)

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if place == "callback" and state.global_step == step and next(calls) == 0:
                raise KeyboardInterrupt

    cut = trainer("cut", reward_funcs=reward, callbacks=[Stop])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    with pytest.raises(UsageError, match="cut short"):
        cut.train()
    base, reached = cut.recipe.model, cut.model.state_dict()  # what the journal has, of a run that was cut short
    assert any(not tensor.equal(reached[name]) for name, tensor in load_model(base)[0].state_dict().items())
    with pytest.raises(UsageError, match="given:reward"):
        resume(Path(str(cut.args.output_dir)))
    again = trainer("cut", reward_funcs=reward, callbacks=[Stop])
    again.train(resume_from_checkpoint=True)
    whole, after = (Path(str(again.args.output_dir)).parent / name for name in ("whole", "cut"))
    assert weights(whole) == weights(after)
    assert [entry["step"] for entry in again.state.log_history if "reward" in entry] == [2, 4, 6]
    assert again.state.global_step == 6


def test_a_run_goes_on_only_with_the_options_and_the_data_that_it_had(trainer: Callable[..., EggrollTrainer]) -> None:
    trainer("run", max_steps=2).train()
    with pytest.raises(UsageError, match=r"begun with other options: population"):
        trainer("run", max_steps=4, sigma=0.1).train(resume_from_checkpoint=True)
    longer = trainer("run", max_steps=4)
    assert longer.train(resume_from_checkpoint=str(longer.args.output_dir)).global_step == 4


class Log(TrainerCallback):
    """What a callback is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def note(args: Any, state: Any, control: Any, **given: Any) -> None:
            assert given["logs"] is not None if name == "on_log" else True
            self.events.append((name.removeprefix("on_"), state.global_step))

        return note


def test_callbacks_hear_what_transformers_tells_them(trainer: Callable[..., EggrollTrainer]) -> None:
    log = Log()
    held_out = ROWS.select(range(4))
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 3, "num_generations": 8}
    trainer("run", callbacks=[log], eval_dataset=held_out, train_dataset=ROWS.select(range(4)), **options).train()
    step = [("step_begin", 0), ("step_end", 1)]
    assert log.events == [
        ("init_end", 0),
        ("train_begin", 0),
        *[("log", 0), ("evaluate", 0)],
        *[("epoch_begin", 0), *step],
        *[("step_begin", 1), ("step_end", 2), ("epoch_end", 2), ("log", 2), ("log", 2), ("evaluate", 2)],
        *[("epoch_begin", 2), ("step_begin", 2), ("step_end", 3), ("save", 3)],
        *[("step_begin", 3), ("step_end", 4), ("epoch_end", 4), ("log", 4), ("log", 4), ("evaluate", 4), ("save", 4)],
        *[("log", 4), ("train_end", 4)],
    ]


def test_what_a_callback_asks_for_is_done(trainer: Callable[..., EggrollTrainer]) -> None:
    class Ask(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_evaluate = control.should_save = state.global_step == 1
            control.should_training_stop = state.global_step == 3

    asked = trainer("run", callbacks=[Ask()], save_strategy="no", eval_dataset=ROWS.select(range(4)))
    assert asked.train().global_step == 3
    with RunFolder(Path(str(asked.args.output_dir))).journal() as journal:
        assert (len(journal), journal.ended) == (3, 3)
        assert set(journal.evaluations) == {0, 1, 3}
    assert [path.stem for path in RunFolder(Path(str(asked.args.output_dir))).snapshots.iterdir()] == ["00000001"]


def test_early_stopping_stops_where_nothing_gets_better(trainer: Callable[..., EggrollTrainer]) -> None:
    stopping = trainer(
        "run",
        reward_funcs=lambda completions, **_: [0.5] * len(completions),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        eval_dataset=ROWS.select(range(4)),
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="eval_reward",
    )
    assert stopping.train().global_step == 2
    assert stopping.state.best_metric == 0.5


def test_rewards_of_trl_judge_as_they_are(trainer: Callable[..., EggrollTrainer]) -> None:
    rewards = [accuracy_reward, think_format_reward, get_cosine_scaled_reward(8), get_repetition_penalty_reward()]
    trained = trainer(
        "run", train_dataset=CHATS, reward_funcs=rewards, max_steps=1, logging_steps=1, reward_on_error="raise"
    )
    trained.train()
    names = ("accuracy_reward", "think_format_reward", "cosine_scaled_reward", "repetition_penalty_reward")
    assert {f"rewards/{name}/mean" for name in names} <= trained.state.log_history[1].keys()


def test_rewards_see_what_trl_shows_them_and_note_what_they_like(trainer: Callable[..., EggrollTrainer]) -> None:
    seen: list[dict[str, Any]] = []

    def first(prompts: Any, completions: Any, completion_ids: Any, trainer_state: Any, **given: Any) -> list[float]:
        given["log_metric"]("length", float(len(completion_ids[0])))
        given["log_extra"]("first", [text[:1] for text in completions])
        seen.append({"prompts": prompts, "completions": completions, "state": trainer_state, **given})
        return [1.0] * len(prompts)

    async def second(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [2.0 for _ in completions]

    trained = trainer("run", reward_funcs=[first, second], reward_weights=[0.5, 2.0], max_steps=2, logging_steps=1)
    trained.train()
    call = [call for call in seen if call["state"].max_steps][-1]  # the last in training
    assert len(call["prompts"]) == len(call["completions"]) == len(call["answer"]) == 8 * 2
    assert (call["state"].global_step, call["state"].max_steps) == (1, 2)
    entry = next(entry for entry in trained.state.log_history if entry.get("step") == 1)
    assert (entry["rewards/first/mean"], entry["rewards/second/mean"]) == (1.0, 2.0)
    assert entry["reward"] == 0.5 * 1.0 + 2.0 * 2.0
    assert 0 < entry["length"] <= 8
    samples = [json.loads(line) for line in (Path(str(trained.args.output_dir)) / "samples.jsonl").open()]
    assert samples[0]["logged"]["first"] == samples[0]["completion"][:1]


def test_a_function_that_fails_here_costs_only_the_answers_at_fault(trainer: Callable[..., EggrollTrainer]) -> None:
    bad: set[str] = set()

    def picky(prompts: list[str], completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        if trainer_state.max_steps and trainer_state.global_step == 1:
            bad.update(prompts[: not bad])  # the first that it is asked about then
            if bad.intersection(prompts):
                raise ValueError("not this one")
        return [1.0] * len(completions)

    trained = trainer("run", reward_funcs=picky, max_steps=4, logging_steps=1)
    trained.train()
    records = [
        record for record in RunFolder(Path(str(trained.args.output_dir))).metrics() if "reward_failures" in record
    ]
    assert {record["reward_failures"]["exception"] for record in records} == {0, 8}
    assert {record["reward_mean"] for record in records} == {1.0}
    with pytest.raises(UsageError, match="not this one"):
        trainer("other", reward_funcs=picky, max_steps=4, reward_on_error="raise").train()


def test_it_trains_within_a_running_event_loop_and_in_a_thread(trainer: Callable[..., EggrollTrainer]) -> None:
    async def asks(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return digits(completions, answer)

    async def notebook() -> None:
        trainer("in_loop", reward_funcs=asks).train()

    asyncio.run(notebook())
    in_thread = trainer("in_thread", reward_funcs=asks)
    thread = threading.Thread(target=in_thread.train)
    thread.start()
    thread.join()
    last = trainer("plain")
    last.train()
    folder = Path(str(last.args.output_dir)).parent
    assert weights(folder / "in_loop") == weights(folder / "in_thread") == weights(folder / "plain")


def test_a_model_that_is_handed_over_learns_itself(
    trainer: Callable[..., EggrollTrainer], new_model: Callable[..., PreTrainedModel], tokenizer: Any, tmp_path: Path
) -> None:
    model = new_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = trainer("given", model=model, processing_class=tokenizer)
    trained.train()
    trainer("named").train()
    assert weights(tmp_path / "given") == weights(tmp_path / "named")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "named" / "model").state_dict()
    assert all(tensor.equal(saved[name]) for name, tensor in model.state_dict().items())
    assert any(not tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    trained.save_model(tmp_path / "given")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "given").state_dict().keys() == saved.keys()


def test_evaluations_of_several_datasets_have_names_of_their_own(trainer: Callable[..., EggrollTrainer]) -> None:
    held_out = {"near": ROWS.select(range(4)), "far": ROWS.select(range(30, 36))}
    trained = trainer("run", eval_dataset=held_out, max_steps=2)
    trained.train()
    entry = [entry for entry in trained.state.log_history if "eval_far_reward" in entry][-1]
    alone = trained.evaluate()
    assert {"eval_near_reward", "eval_far_reward", "eval_near_accuracy", "eval_far_accuracy"} <= alone.keys()
    assert (entry["eval_reward"], entry["eval_far_reward"]) == pytest.approx(
        (alone["eval_near_reward"], alone["eval_far_reward"])
    )
    assert trained.evaluate("far") == {
        name.replace("eval_far_", "eval_"): value for name, value in alone.items() if name.startswith("eval_far_")
    }
    assert trained.generate(["1 + 1 ="], max_new_tokens=3) == trained.generate(["1 + 1 ="], max_new_tokens=3)


@pytest.mark.parametrize("table", [ROWS.select(range(3)), CHATS.select(range(3))], ids=["text", "chat"])
def test_the_answers_to_a_dataset_are_those_that_are_judged(
    trainer: Callable[..., EggrollTrainer], table: Dataset
) -> None:
    seen: list[Any] = []

    def length(completions: list[Any], **_: Any) -> list[float]:
        seen[:] = completions
        return [float(len(str(one))) for one in completions]

    log = Log()
    asked = trainer("run", reward_funcs=length, train_dataset=table, callbacks=[log])
    predictions, labels, metrics = asked.predict(table)
    assert predictions == seen
    assert len(predictions) == 3
    assert labels is None
    assert metrics is not None
    assert metrics["test_reward"] == pytest.approx(sum(map(len, map(str, predictions))) / 3)
    assert log.events == [("init_end", 0), ("predict", 0)]
    texts = [one if isinstance(one, str) else one[0]["content"] for one in predictions]
    assert texts == asked.generate(list(table["prompt"]))
    with pytest.raises(UsageError, match="test_dataset is a list"):
        asked.predict([])  # type: ignore[arg-type]


def test_a_script_ends_as_it_does_with_trl(trainer: Callable[..., EggrollTrainer], tmp_path: Path) -> None:
    """What open-r1 and TRL's own scripts do after training."""
    held_out = {"near": ROWS.select(range(4)), "far": ROWS.select(range(30, 34))}
    trained = trainer("run", max_steps=5, eval_dataset=held_out, reward_funcs=[partial(digits), partial(digits)])
    result = trained.train()
    last = trained.state.log_history[-1]
    assert {name: last[name] for name in result.metrics} == result.metrics
    assert math.isnan(last["train_loss"])
    assert (last["step"], result.metrics["train_samples"]) == (5, 5 * 8 * 2)
    assert last["reward"] > 0  # of the fifth step, which no entry of every second has
    trained.log_metrics("train", result.metrics)
    trained.save_metrics("train", result.metrics)
    trained.save_state()
    trained.create_model_card(model_name="Sums", dataset_name="me/sums", tags=["open-r1"])
    head, body = (tmp_path / "run" / "README.md").read_text().split("---\n", 2)[1:]
    metadata = yaml.safe_load(head)
    assert metadata["datasets"] == ["me/sums"]
    assert {"open-r1", "eggroll"} <= set(metadata["tags"])
    assert body.lstrip().startswith("# Sums\n")
    trained.model.config.save_pretrained(tmp_path / "config")
    assert trained.train_dataset is ROWS
    assert trained.eval_dataset is held_out
    assert trained.reward_func_names == ["digits", "digits_2"]
    assert len(trained.reward_funcs) == 2
    assert trained.is_local_process_zero()


def test_the_page_of_its_run_says_which_option_became_which_key(trainer: Callable[..., EggrollTrainer]) -> None:
    trained = trainer("run", max_steps=1, gradient_checkpointing=False)
    trained.train()
    page = write_report(Path(str(trained.args.output_dir)), None).read_text()
    for words in ("max_completion_length", "sampling.max_new_tokens", "gradient_checkpointing", "no backward pass"):
        assert words in page
