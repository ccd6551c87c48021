"""The GRPO baseline: TRL's own trainer is the reference, and an EGGROLL run of the same recipe the other one."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from eggroll_rl import grpo, train
from eggroll_rl.config import Recipe, SamplingConfig
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.local.choice import for_any
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.models.blueprint import inspect
from eggroll_rl.models.loading import load_model
from eggroll_rl.runs.evaluation import as_trl
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.scoring import Scorer
from eggroll_rl.scoring.functions import resolve
from eggroll_rl.system.errors import UsageError

ModelFolder = Callable[[str], Path]

REWARDS = '''
def choosy(prompts, completions, letter, **columns):
    """Share of lower-case letters; of no account where the letter is d."""
    return [None if mine == "d" else sum(map(str.islower, text)) / 6 for text, mine in zip(completions, letter)]
'''
ROWS = [{"prompt": f"{n} + {n + 1} =" + " " * (n % 3), "letter": "abcd"[n % 4]} for n in range(40)]
GRPO = {"prompts": 2, "group": 4, "minibatches": 1, "lr": 3e-3, "optimizer": "adamw"}


@pytest.fixture
def new_recipe(tmp_path: Path, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """``new_recipe(architecture, **changes)``, in a folder with prompts and a reward."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "mine.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)

    def build(architecture: str = "llama", **changes: Any) -> Recipe:
        values: dict[str, Any] = {
            "model": str(model_folder(architecture)),
            "data": {"name": "rows.jsonl", "prompts": 2},
            "rewards": [{"fn": "mine.py:choosy"}],
            "population": {"size": 4, "sigma": 0.1},
            "grpo": GRPO,
            "sampling": {"max_new_tokens": 6, "stop": ["z"]},
            "evaluation": {"n": 3},
            "generations": 5,
            "output_dir": "run",
        }
        return Recipe.model_validate(values | changes)

    return build


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What TRL is given in each round: ``prompts``, ``answers``, token ids and ``rewards``."""
    seen: list[dict[str, Any]] = []
    answer, reward = grpo.Rounds.answer, grpo.Rounds.reward

    def answer_seen(self: grpo.Rounds, prompts: Any, trainer: Any) -> dict[str, Any]:
        output = answer(self, prompts, trainer)
        seen.append({"prompts": prompts, "answers": self.answers, **output})
        return output

    def reward_seen(self: grpo.Rounds, prompts: Any, **columns: Any) -> list[float | None]:
        seen[-1]["rewards"] = reward(self, prompts, **columns)
        return seen[-1]["rewards"]

    monkeypatch.setattr(grpo.Rounds, "answer", answer_seen)
    monkeypatch.setattr(grpo.Rounds, "reward", reward_seen)
    return seen


def losses(run: RunFolder) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in run.metrics() if "loss" in record]


@pytest.mark.parametrize(
    "changes", [{}, {"minibatches": 2, "iterations": 2, "scale_rewards": "group", "loss": "dapo"}, {"rows": 2}]
)
def test_losses_are_those_of_trl_alone(
    new_recipe: Callable[..., Recipe], rollouts: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    """TRL's trainer as its documentation shows it, on the same prompts, the same answers and the same reward."""
    import datasets
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    recipe = new_recipe(grpo={**GRPO, **changes})
    found = losses(grpo.train(recipe))

    data = load_data(recipe.data, recipe.seed)
    batches = [data.batch(step) for step in range(recipe.generations)]
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    letters = [letter for batch in batches for letter in batch.columns["letter"]]
    model, tokenizer = load_model(recipe.model)
    section, logged = recipe.grpo, []

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                logged.append((logs["loss"], logs["grad_norm"]))

    replayed = iter(rollouts)

    def replay(texts: list[str], trainer: Any) -> dict[str, Any]:
        ids = next(replayed)["completion_ids"]
        return {"prompt_ids": tokenizer(texts)["input_ids"], "completion_ids": ids, "logprobs": None}

    steps = section.minibatches * section.iterations
    rows = section.rows or section.rollouts // section.minibatches
    args = GRPOConfig(
        output_dir="bare", use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", disable_tqdm=True, learning_rate=section.lr, lr_scheduler_type="constant",
        optim="adamw_torch",
        per_device_train_batch_size=rows, num_generations=section.group, generation_batch_size=section.rollouts,
        gradient_accumulation_steps=section.rollouts // section.minibatches // rows, num_iterations=section.iterations,
        max_completion_length=6, max_steps=5 * steps, logging_steps=steps, seed=0, beta=0.0, epsilon=section.epsilon,
        loss_type=section.loss, scale_rewards=section.scale_rewards, shuffle_dataset=False,
    )  # fmt: skip
    GRPOTrainer(
        model,
        [resolve("mine.py:choosy")],
        args,
        datasets.Dataset.from_dict({"prompt": prompts, "letter": letters}),
        processing_class=tokenizer,
        callbacks=[Log()],
        rollout_func=replay,
    ).train()
    assert len(found) == 5
    assert found == [pytest.approx(pair, rel=1e-3, abs=1e-6) for pair in logged]
    assert any(abs(loss) > 1e-4 for loss, _ in found)


def test_one_reward_serves_both_methods(
    new_recipe: Callable[..., Recipe], rollouts: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same function object, called as TRL calls it, gives the rewards that both runs used: its column arrives, and
    None takes no part."""
    choosy = resolve("mine.py:choosy")
    scored: list[tuple[Any, ...]] = []
    score = Scorer.__call__

    def score_seen(self: Any, completions: Any, prompts: Any, columns: Any, *others: Any) -> Any:
        scores = score(self, completions, prompts, columns, *others)
        scored.append((completions, prompts, columns, scores.rewards_NP))
        return scores

    monkeypatch.setattr(Scorer, "__call__", score_seen)
    train.train(new_recipe(output_dir="eggroll"))
    grpo.train(new_recipe(output_dir="grpo"))
    nones = 0
    for completions, prompts, columns, rewards_NP in scored:
        for row, rewards in zip(completions, rewards_NP.tolist(), strict=True):
            expected = choosy(prompts=prompts, completions=row, trainer_state=None, **columns)
            nones += expected.count(None)
            assert [None if math.isnan(reward) else reward for reward in rewards] == expected
    assert nones
    letter_of = {row["prompt"]: row["letter"] for row in ROWS}
    for seen in rollouts:
        texts = [answer.text for answer in seen["answers"]]
        letters = [letter_of[prompt] for prompt in seen["prompts"]]
        assert seen["rewards"] == choosy(seen["prompts"], texts, letters)
    walked = [prompt for seen in rollouts for prompt in seen["prompts"][::4]]
    data = load_data(new_recipe().data, 0)
    assert walked == [prompt for generation in range(5) for prompt in data.batch(generation).prompts]


def test_a_run_has_what_an_eggroll_run_has(new_recipe: Callable[..., Recipe]) -> None:
    run = grpo.train(new_recipe(evaluation={"n": 3, "every": 2}))
    records = run.metrics()
    assert [r["generation"] for r in records if "accuracy" in r] == [0, 2, 4, 5]
    rounds = [r for r in records if "reward_mean" in r]
    assert [r["generation"] for r in rounds] == list(range(5))
    other = next(r for r in train.train(new_recipe(output_dir="eggroll")).metrics() if "reward_mean" in r)
    only_evolution = {"reward_std", "reward_best_member", "reward_quantiles", "signal", "sigma", "update_rms"}
    assert set(other) - set(rounds[0]) == only_evolution
    assert {"recipe.yaml", "metrics.jsonl", "samples.jsonl", "learning_curve.png", "model"} <= {
        path.name for path in run.path.iterdir()
    }
    with pytest.raises(UsageError, match=r"is a GRPO run, which keeps no journal: it cannot be resumed"):
        train.resume(run.path)
    with pytest.raises(UsageError, match="never overwritten"):
        grpo.train(new_recipe())


@pytest.mark.parametrize("engine", ["rwkv", "transformers"])
def test_rwkv7_learns_and_a_seed_reproduces(new_recipe: Callable[..., Recipe], engine: str) -> None:
    changes = {"engine": {"name": engine}, "rewards": [{"fn": "mine.py:choosy"}], "generations": 3}
    runs = [grpo.train(new_recipe("rwkv7", output_dir=f"run-{n}", **changes)) for n in range(2)]
    assert all(math.isfinite(loss) and norm > 0 for loss, norm in losses(runs[0]))
    assert losses(runs[0]) == losses(runs[1])
    before, *after = (
        dict(load_model(str(name))[0].named_parameters())
        for name in (new_recipe("rwkv7").model, *(r.model for r in runs))
    )
    assert all(torch.equal(after[0][name], after[1][name]) for name in before)
    assert sum(not torch.equal(tensor, after[0][name]) for name, tensor in before.items()) > len(before) / 2
    other = grpo.train(new_recipe("rwkv7", output_dir="other", seed=1, **changes))
    assert losses(other) != losses(runs[0])


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("rwkv7", {"engine": {"name": "rwkv"}}),
        ("rwkv7", {"engine": {"name": "rwkv"}, "grpo": {**GRPO, "lora_rank": 2}}),
        ("llama", {"grpo": {**GRPO, "lora_rank": 2}}),
        ("llama", {"engine": {"dtype": "bfloat16"}}),
        ("llama", {"grpo": {**GRPO, "parameters": "evolved"}}),
    ],
)
def test_answers_follow_the_weights(
    new_recipe: Callable[..., Recipe], architecture: str, changes: dict[str, Any]
) -> None:
    """After a step on every trained parameter, the engine answers as a new engine on the new weights does."""
    recipe = new_recipe(architecture, **changes)
    policy = grpo.Policy(recipe)
    prompts = [f"{row['prompt']}{n}" for n in range(2) for row in ROWS]  # enough rows for the fused step
    sampling = SamplingConfig(max_new_tokens=6)

    def answers() -> list[str]:
        with policy.answering() as engine:
            return [answer.text for answer in engine.generate(prompts, sampling)[0]]

    before = answers()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    after = answers()
    model = policy.trained
    if recipe.grpo.lora_rank:
        model = model.merge_and_unload()
    reference = LocalEngine(model.to(getattr(torch, recipe.engine.dtype)), policy.tokenizer, choice=for_any)
    expected = [answer.text for answer in reference.generate(prompts, sampling)[0]]
    assert after == expected
    assert after != before


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        ("rwkv7", {"frozen": ["*.layers.*", "*embed*", "*norm*"]}),
        ("llama", {"dense": ["model.norm.weight"], "frozen": ["*embed*"]}),
    ],
)
def test_what_evolves_may_be_all_that_is_trained(
    new_recipe: Callable[..., Recipe], architecture: str, parameters: dict[str, Any]
) -> None:
    recipe = new_recipe(architecture, parameters=parameters, generations=2, grpo={**GRPO, "parameters": "evolved"})
    run = grpo.train(recipe)
    before, after = (dict(load_model(str(folder))[0].named_parameters()) for folder in (recipe.model, run.model))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {parameter.name for parameter in inspect(recipe).evolved}
    assert 0 < len(moved) < len(before)


def test_answers_keep_their_end_token(new_recipe: Callable[..., Recipe]) -> None:
    """The token that ends an answer was sampled like the others; the text is that of any other engine."""
    recipe = new_recipe()
    policy = grpo.Policy(recipe)
    plain = LocalEngine(*load_model(recipe.model), choice=for_any)
    sampling = SamplingConfig(max_new_tokens=40, temperature=1.5, stop=("z",))
    prompts = [row["prompt"] for row in ROWS]
    whole, bare = policy.engine.generate(prompts, sampling)[0], plain.generate(prompts, sampling)[0]
    ended = 0
    for answer, other in zip(whole, bare, strict=True):
        assert (answer.text, answer.finished) == (other.text, other.finished)
        by_token = answer.finished and "z" not in answer.text
        assert answer.token_ids == other.token_ids + ((policy.tokenizer.eos_token_id,) if by_token else ())
        ended += by_token
    assert ended
    assert as_trl([whole], prompts) == as_trl([bare], prompts)


def test_adapters_alone_learn(new_recipe: Callable[..., Recipe]) -> None:
    recipe = new_recipe(grpo={**GRPO, "lora_rank": 2, "lr": 1e-1}, generations=2)
    run = grpo.train(recipe)
    before, after = (dict(load_model(str(name))[0].named_parameters()) for name in (recipe.model, run.model))
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved
    assert all(name.endswith("_proj.weight") for name in moved)
    assert set(before) == set(after)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"group": 3, "prompts": 3, "minibatches": 4}, r"9 answers \(prompts 3 x group 3\) does not divide into 4"),
        ({"rows": 3}, "a minibatch of 8 answers does not divide into passes of 3 rows: change grpo.rows"),
        ({"group": 1}, "grpo.group"),
        ({"temperature": 0}, "grpo.temperature"),
        ({"loss": "ppo"}, "grpo.loss"),
        ({"parameters": "evolved", "lora_rank": 2}, "lora_rank trains adapters"),
    ],
)
def test_a_wrong_section_is_named(new_recipe: Callable[..., Recipe], section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_recipe(grpo={**GRPO, **section})


def test_what_cannot_be_trained_is_said_before_a_model_loads(
    new_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("eggroll_rl.grpo.policy.load_model", refuse)
    with pytest.raises(UsageError, match=r"GRPO trains in one process.*engine.pool=null"):
        grpo.train(new_recipe(engine={"pool": {"replicas": 2}}))
    with pytest.raises(UsageError, match=r"engine.name=vllm: .* set engine.name=local"):
        grpo.train(new_recipe(engine={"name": "vllm"}))
    with pytest.raises(UsageError, match=r"RWKV7ForCausalLM, and TRL cannot load a second.*grpo.beta=0"):
        grpo.train(new_recipe("rwkv7", grpo={**GRPO, "beta": 0.1}))
    with pytest.raises(UsageError, match="no gradient checkpointing"):
        grpo.train(new_recipe("rwkv7", grpo={**GRPO, "gradient_checkpointing": True}))
    with monkeypatch.context() as patch:
        patch.setattr("transformers.LlamaForCausalLM.get_output_embeddings", lambda self: None)
        with pytest.raises(UsageError, match="LlamaForCausalLM, which TRL cannot train"):
            grpo.train(new_recipe())
    with monkeypatch.context() as patch:
        patch.setattr(grpo, "find_spec", lambda name: None if name == "peft" else object())
        with pytest.raises(UsageError, match=r"grpo.lora_rank needs PEFT: pip install peft"):
            grpo.train(new_recipe(grpo={**GRPO, "lora_rank": 2}))
        patch.setattr(grpo, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"GRPO needs TRL: pip install 'eggroll-rl\[grpo\]'"):
            grpo.train(new_recipe())
    assert not Path("run").exists()


def test_the_minutes_end_a_run(new_recipe: Callable[..., Recipe]) -> None:
    run = grpo.train(new_recipe(minutes=0.01, generations=10**6, evaluation={"n": 3, "marks": 4}))
    records = run.metrics()
    rounds = [record for record in records if "reward_mean" in record]
    assert 0.6 <= rounds[-1]["seconds"] < 30
    assert all(record["seconds"] < 0.6 for record in rounds[:-1])
    measured = [record for record in records if "accuracy" in record]
    assert measured[0]["generation"] == 0
    assert measured[-1]["generation"] == len(rounds)
