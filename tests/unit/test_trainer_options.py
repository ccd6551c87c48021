"""All options of TRL are in ``EggrollConfig``; each sets the recipe, is the trainer's own, or is refused."""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import HfArgumentParser, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, TrlParser
from trl.rewards import get_repetition_penalty_reward, think_format_reward

from eggroll_rl import EggrollConfig, EggrollTrainer
from eggroll_rl.config import Recipe, dump_recipe, load_recipe
from eggroll_rl.rewards.text import exact_match
from eggroll_rl.system.errors import UsageError
from eggroll_rl.trainer.hooks import HOOKS
from eggroll_rl.trainer.mapping import rows_of_table
from eggroll_rl.trainer.options import Kind, Option, options

ROWS = Dataset.from_list([{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(40)])
OTHER_DEFAULTS = {  # where evolution wants another one, or a folder and a project have names of their own
    "learning_rate",
    "per_device_train_batch_size",
    "temperature",
    "project",
    "vllm_gpu_memory_utilization",
    "hub_strategy",
}
NOT_OF_TRL = {
    *("population_size", "sigma", "rank", "antithetic", "noise", "noise_reuse", "fitness_shaping", "fitness_best"),
    *("whitening", "lowrank", "dense", "frozen", "prompts_per_generation", "minutes", "engine", "momentum", "stop"),
    *("reward_timeout", "reward_on_error", "eval_reward", "overrides", "system"),
    *("max_prompt_length", "warmup_ratio", "evaluation_strategy", "use_liger_loss", "vllm_device"),
    *("vllm_guided_decoding_regex", "wandb_log_unique_prompts"),
}
OTHERS: dict[str, Any] = {  # another value of each option that sets keys of the recipe
    "output_dir": "elsewhere",
    "population_size": 8,
    "sigma": 0.5,
    "rank": 2,
    "antithetic": False,
    "noise": "rademacher",
    "noise_reuse": 2,
    "whitening": 0.1,
    "fitness_shaping": "rank",
    "fitness_best": 3,
    "lowrank": ["*q_proj*"],
    "dense": ["*bias"],
    "frozen": ["*head*"],
    "prompts_per_generation": 3,
    "minutes": 2.0,
    "engine": "transformers",
    "momentum": 0.5,
    "stop": ["\n"],
    "reward_timeout": 3.0,
    "reward_on_error": "raise",
    "eval_reward": "eggroll_rl.rewards.text:exact_match",
    "num_train_epochs": 2,
    "max_steps": 7,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
    "optim": "sgd",
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "model_init_kwargs": {"dtype": "bfloat16"},
    "bf16": True,
    "use_cpu": True,
    "use_vllm": True,
    "vllm_gpu_memory_utilization": 0.4,
    "vllm_max_model_length": 100,
    "vllm_tensor_parallel_size": 2,
    "max_completion_length": 9,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "system": "Be brief.",
    "generation_kwargs": {"stop_strings": ["."]},
    "chat_template_kwargs": {"enable_thinking": False},
    "reward_weights": [0.5],
    "eval_strategy": "epoch",
    "eval_steps": 3,
    "save_strategy": "no",
    "save_steps": 5,
    "save_total_limit": 4,
    "report_to": ["tensorboard"],
    "project": "mine",
    "run_name": "first",
    "trackio_space_id": "me/space",
    "seed": 1,
}
NEEDS: dict[str, dict[str, Any]] = {  # options without which another is not looked at
    "eval_steps": {"eval_strategy": "steps"},
    "project": {"report_to": "wandb"},
    "run_name": {"report_to": "wandb"},
    "trackio_space_id": {"report_to": "trackio"},
}
BY_NAME = {option.name: option for option in options(EggrollConfig)}
REFUSED = [option for option in BY_NAME.values() if option.kind is Kind.REFUSED]
READ = {option.name for option in BY_NAME.values() if option.kind is Kind.OWN}  # by trainers and scripts


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def another(option: Option) -> Any:
    """A value of the same type that is not the default."""
    if isinstance(option.default, bool):
        return not option.default
    if isinstance(option.default, int | float):
        return option.default + 1
    return ["other"] if isinstance(option.default, list) else "other"


def recipe_with(**values: Any) -> Recipe:
    return EggrollTrainer("tiny", "mine:reward", EggrollConfig(**{"output_dir": "run", **values}), ROWS).recipe


def test_every_option_of_trl_is_here_with_its_default() -> None:
    theirs = {field.name: field for field in dataclasses.fields(GRPOConfig)}
    assert not theirs.keys() - BY_NAME.keys()
    assert BY_NAME.keys() - theirs.keys() == NOT_OF_TRL
    for name, field in theirs.items():
        is_made = field.default is dataclasses.MISSING
        default = plain(field.default_factory() if is_made else field.default)  # type: ignore[misc]
        assert (BY_NAME[name].default == default) is (name not in OTHER_DEFAULTS), name


def test_every_option_says_what_becomes_of_it() -> None:
    keys = {name for name, option in BY_NAME.items() if option.kind is Kind.KEY}
    assert keys == OTHERS.keys()
    assert all(option.says for option in BY_NAME.values())


@pytest.mark.parametrize("option", REFUSED, ids=lambda option: option.name)
def test_an_option_without_a_meaning_is_refused_with_the_reason(option: Option) -> None:
    EggrollConfig(**{option.name: option.default})
    with pytest.raises(UsageError) as refusal:
        EggrollConfig(**{option.name: another(option)})
    assert option.name in str(refusal.value)
    assert option.says in str(refusal.value)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(GRPOConfig)])
def test_no_option_of_trl_is_passed_over_in_silence(name: str, caplog: pytest.LogCaptureFixture) -> None:
    value = OTHERS.get(name, another(BY_NAME[name]))
    before = recipe_with(**NEEDS.get(name, {}))
    caplog.clear()
    try:
        after = recipe_with(**NEEDS.get(name, {}), **{name: value})
    except UsageError as error:
        assert re.search(rf"\b{name}=", str(error))
        return
    assert name in READ or before != after or re.search(rf"\b{name} \(", caplog.text)


def test_all_that_is_refused_is_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"beta=0\.04.*loss_type='dr_grpo'.*max_grad_norm=0\.1"):
        EggrollConfig(beta=0.04, loss_type="dr_grpo", max_grad_norm=0.1, temperature=1.0)


@pytest.mark.parametrize("name", OTHERS)
def test_an_option_with_a_meaning_changes_the_recipe_there_and_nowhere_else(name: str, tmp_path: Path) -> None:
    before, after = recipe_with(**NEEDS.get(name, {})), recipe_with(**NEEDS.get(name, {}), **{name: OTHERS[name]})
    changed = {key for key, value in before.model_dump().items() if after.model_dump()[key] != value}
    says = {key.split(".")[0] for key in BY_NAME[name].says.split(", ")}
    depends = {
        "data": {"generations"},
        "output_dir": {"data"},
    }  # epochs are of so many steps; the data lies in the folder
    allowed = says.union(*(depends.get(key, set()) for key in says))
    assert says <= changed <= allowed
    dump_recipe(after, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == after


@pytest.mark.parametrize(
    ("batch", "accumulated", "group", "prompts", "steps"), [(1, 8, 4, 2, 60), (8, 1, 8, 1, 120), (16, 4, 16, 4, 30)]
)
def test_a_step_learns_from_as_many_prompts_and_an_epoch_has_as_many_steps_as_in_trl(
    batch: int, accumulated: int, group: int, prompts: int, steps: int
) -> None:
    recipe = recipe_with(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated, num_generations=group
    )
    assert (recipe.data.prompts, recipe.generations) == (prompts, steps)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_generations": 7}, "num_generations=7"),
        ({"reward_weights": [1.0, 2.0]}, "reward_weights has 2 numbers for 1 reward"),
        ({"optim": "adafactor"}, "optim='adafactor': there are adamw_torch"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type='polynomial'"),
        ({"report_to": "all"}, "report_to='all': there are tensorboard"),
        ({"eval_strategy": "best"}, "eval_strategy='best'"),
        ({"generation_kwargs": {"num_beams": 2}}, "generation_kwargs: num_beams=2"),
        ({"generation_kwargs": {"do_sample": True}}, "do_sample=True and temperature=0"),
        ({"generation_kwargs": {"do_sample": False}, "temperature": 1.0}, "do_sample=False and temperature=1"),
        ({"model_init_kwargs": {"use_kernels": True}}, "use_kernels=True"),
        ({"model_init_kwargs": {"revision": "v2"}}, "revision='v2': a recipe names a model by its name alone"),
        ({"model_init_kwargs": {"trust_remote_code": True, "use_kernels": True}}, "no code from the hub.*use_kernels"),
        ({"model_init_kwargs": {"quantization_config": {"a": 1}}}, "a quantised weight"),
        ({"model_init_kwargs": {"dtype": "float16"}}, "dtype='float16': there are float32"),
        ({"max_completion_length": None}, "max_completion_length=None"),
        ({"temperature": -1.0}, r"sampling\.temperature is temperature here"),
        ({"population_size": 7}, "population"),
        ({"overrides": ["population.sice=8"]}, r"population\.size"),
        ({"model_init_kwargs": "{"}, "model_init_kwargs='{' is not JSON"),
        ({"use_vllm": True, "engine": "rwkv"}, "name one of the two"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe_with(**values)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rollout_func", lambda prompts, trainer: {}, "set of weights"),
        ("peft_config", object(), "adapters"),
        ("tools", [print], "one turn"),
        ("environment_factory", object, "one turn"),
        ("quantization_config", object(), "quantised"),
        ("reward_processing_classes", [None], "reward models"),
        ("optimizers", (object(), None), "learning_rate"),
        ("args", GRPOConfig, "EggrollConfig"),
        ("reward_funcs", "some/reward-model", "reward model"),
        ("reward_funcs", [], "empty"),
        ("reward_funcs", [3], "no function"),
        ("train_dataset", None, "train_dataset"),
        ("train_dataset", DatasetDict(train=ROWS), "name one of them"),
        ("train_dataset", ROWS.to_iterable_dataset(), "take rows of it"),
        ("eval_dataset", {"a": ROWS.to_iterable_dataset()}, "take rows of it"),
        ("model", 3, "PreTrainedModel"),
    ],
)
def test_an_argument_that_means_nothing_here_is_named_with_the_reason(name: str, value: Any, words: str) -> None:
    given = {"model": "tiny", "reward_funcs": "mine:reward", "args": EggrollConfig("run"), "train_dataset": ROWS}
    with pytest.raises(UsageError, match=words) as refusal:
        EggrollTrainer(**(given | {name: value}))
    assert name.rstrip("s") in str(refusal.value)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("dtype", "bf16", "taken"),
    [
        ("bfloat16", None, "bfloat16"),
        (torch.bfloat16, False, "bfloat16"),  # such a model computes in it, whatever is cast automatically
        ("float32", True, "bfloat16"),
        (torch.float32, None, "float32"),
        ("auto", None, "float32"),
    ],
)
def test_a_dtype_of_the_model_is_what_it_answers_in(
    key: str, dtype: Any, bf16: bool | None, taken: str, model_folder: Callable[[str], Path]
) -> None:
    args = EggrollConfig("run", model_init_kwargs={key: dtype}, bf16=bf16)
    assert EggrollTrainer(str(model_folder("llama")), "mine:reward", args, ROWS).recipe.engine.dtype == taken


def test_how_a_model_is_loaded_is_said_to_be_the_engines(caplog: pytest.LogCaptureFixture) -> None:
    given = {"attn_implementation": "flash_attention_2", "device_map": "auto", "revision": "main", "use_cache": None}
    recipe_with(model_init_kwargs=given)
    assert "model_init_kwargs attn_implementation (" in caplog.text
    assert "model_init_kwargs device_map (" in caplog.text
    assert "revision" not in caplog.text


def test_what_scripts_ask_about_their_process_is_answered_as_by_trl(tmp_path: Path) -> None:
    theirs = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    ours = EggrollConfig(str(tmp_path), use_cpu=True)
    for name in ("device", "n_gpu", "process_index", "local_process_index", "should_log", "should_save", "world_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for level in ("passive", "debug", "info", "warning", "error"):
        theirs.log_level = ours.log_level = level
        assert ours.get_process_log_level() == theirs.get_process_log_level() or level == "passive"
    ours.distributed_state.wait_for_everyone()
    with ours.main_process_first(desc="tokenising"):
        assert json.loads(ours.to_json_string())["max_completion_length"] == 512
    assert all(isinstance(value, bool | int | float | str) for value in ours.to_sanitized_dict().values())


OF_GRADIENTS = {  # methods of transformers' trainer that a script has nothing to call for
    *("autocast_smart_context_manager", "call_model_init", "compute_loss_context_manager", "floating_point_ops"),
    *("create_accelerator_and_postprocess", "get_cp_size", "get_sp_size", "get_tp_size", "hyperparameter_search"),
    *("get_decay_parameter_names", "get_gamma_weights", "get_high_entropy_mask", "get_learning_rates"),
    *("get_num_trainable_parameters", "get_off_policy_mask", "get_optimizer_cls_and_kwargs", "get_optimizer_group"),
    *("get_total_train_batch_size", "init_hf_repo", "metrics_format", "num_examples", "set_initial_training_values"),
    "store_flos",
}


def test_methods_of_trl_are_here_or_are_of_gradients() -> None:
    theirs = {name for name, _ in inspect.getmembers(GRPOTrainer, callable) if not name.startswith("_")}
    assert {name for name in theirs if not hasattr(EggrollTrainer, name)} - HOOKS == OF_GRADIENTS


@dataclasses.dataclass
class OfAScript(EggrollConfig):
    """Options that a script adds, as open-r1 does."""

    benchmarks: list[str] = dataclasses.field(default_factory=list, metadata={"help": "What to run: after training."})
    system_prompt: str | None = None


def test_a_script_adds_options_of_its_own(tmp_path: Path) -> None:
    (args,) = TrlParser([OfAScript]).parse_args_and_config(
        [
            *(
                "--output_dir",
                str(tmp_path / "run"),
                "--benchmarks",
                "sums",
                "--system_prompt",
                "Be brief.",
                "--sigma",
                "1",
            )
        ]
    )
    assert (args.benchmarks, args.system_prompt) == (["sums"], "Be brief.")
    trainer = EggrollTrainer("tiny", "mine:reward", args, ROWS)
    assert trainer.recipe.population.sigma == 1
    assert rows_of_table(trainer.args)
    with pytest.raises(UsageError, match="beta=1"):
        OfAScript(beta=1.0)


def test_a_step_of_gradient_training_cannot_be_redefined() -> None:
    assert all(hasattr(GRPOTrainer, name) and not hasattr(EggrollTrainer, name) for name in HOOKS)
    with pytest.raises(UsageError, match=r"class Mine redefines _generate, compute_loss, which no run"):
        type("Mine", (EggrollTrainer,), {"compute_loss": None, "_generate": None, "of_its_own": None})
    type("Other", (EggrollTrainer,), {"of_its_own": None})


def test_command_lines_and_files_give_options_as_for_trl(tmp_path: Path) -> None:
    line = ["--output_dir", "run", "--max_steps", "3", "--use_cpu", "--reward_weights", "1", "2", "--seed", "5"]
    (config,) = HfArgumentParser(EggrollConfig).parse_args_into_dataclasses(line)  # type: ignore[arg-type]
    assert (config.output_dir, config.max_steps, config.use_cpu, config.seed) == ("run", 3, True, 5)
    assert config.reward_weights == [1.0, 2.0]
    (tmp_path / "args.yaml").write_text("temperature: 0.5\nchat_template_kwargs: {enable_thinking: false}\n")
    (config,) = TrlParser([EggrollConfig]).parse_args_and_config([*line, "--config", str(tmp_path / "args.yaml")])
    assert (config.temperature, config.chat_template_kwargs) == (0.5, {"enable_thinking": False})


def of_this_module(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


class Grader:
    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [0.0] * len(completions)


def test_only_what_another_process_would_find_is_named_by_an_import_string(monkeypatch: pytest.MonkeyPatch) -> None:
    def inner(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    given: list[Callable[..., Any]] = [exact_match, think_format_reward, inner, lambda completions: [], inner]
    given += [partial(inner, scale=2), Grader(), get_repetition_penalty_reward()]
    trainer = EggrollTrainer("tiny", given, EggrollConfig("run"), ROWS)
    assert [reward.fn for reward in trainer.recipe.rewards] == [
        "eggroll_rl.rewards.text:exact_match",
        "trl.rewards.format_rewards:think_format_reward",
        "given:inner",
        "given:lambda",
        "given:inner_2",
        "given:inner_3",
        "given:Grader",
        "given:repetition_penalty_reward",
    ]
    monkeypatch.setattr(of_this_module, "__module__", "__main__")
    trainer = EggrollTrainer("tiny", of_this_module, EggrollConfig("run"), ROWS)
    assert trainer.recipe.rewards[0].fn == "given:of_this_module"


def test_a_tokenizer_of_its_own_goes_with_a_copy_of_the_model(
    model_folder: Callable[[str], Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = str(model_folder("llama"))
    same = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="right")
    same.pad_token = same.eos_token
    other = PreTrainedTokenizerFast.from_pretrained(folder)
    other.chat_template = "{{ messages[0]['content'] }}"
    places = [
        EggrollTrainer(folder, of_this_module, EggrollConfig("run"), ROWS, processing_class=one).recipe.model
        for one in (None, same, other)
    ]
    assert places == [folder, folder, "run/inputs/model"]
