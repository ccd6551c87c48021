"""The GRPO baseline: a recipe's model, prompts, rewards, decoding and evaluation under TRL's ``GRPOTrainer``.

TRL computes advantages, loss, gradients and steps. This package's engines answer with the weights that are trained, and
``Scorer`` gives the rewards, so that a baseline answers as fast as an EGGROLL run, and is judged in the same way.
"""

from contextlib import nullcontext
from importlib.metadata import version
from importlib.util import find_spec

from eggroll_rl import __version__
from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.build import check_engine, is_local, prompt_check
from eggroll_rl.engines.fleet.spmd import process_group
from eggroll_rl.grpo.policy import Policy
from eggroll_rl.grpo.rounds import Rounds
from eggroll_rl.grpo.trainer import build_trainer, run_trainer
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.report import draw_run
from eggroll_rl.runs.answers import open_answers
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.session import Session, prepared
from eggroll_rl.system.durable import write_json
from eggroll_rl.system.errors import UsageError


def train(recipe: Recipe) -> RunFolder:
    """Train a recipe by GRPO and return its run folder: as ``eggroll_rl.train.train``, but it cannot be resumed.

    A generation is a batch of rollouts with all its optimizer steps. The minutes are those of training alone.

    Raises:
        UsageError: a mistake in the recipe, the data or a reward, something is not installed, or a full disk.
        Interrupted: on Ctrl-C or SIGTERM.
    """
    run = RunFolder(recipe.output_dir)
    run.refuse_unusable()
    blueprint = check_grpo(recipe)
    asked = recipe.data.model_copy(update={"prompts": recipe.grpo.prompts})
    data = load_data(asked, recipe.seed, prompt_check(recipe, blueprint))
    with (
        open_answers(recipe, data, blueprint) as objective,
        prepared(recipe, nullcontext(objective), blueprint) as context,
        run.claimed(),
    ):
        context.display.say(f"{recipe.model} -> {run.path} (GRPO)")
        policy = Policy(recipe)
        _begin(run, recipe, policy)
        session = Session(context, policy, lambda: objective.measure(policy))
        rounds = Rounds(recipe, data, policy, objective.scorer, session.clock)

        def after_round(logs: dict[str, float]) -> bool:
            metrics, samples = rounds.finish(logs)
            session.log(run.log(metrics, samples))
            session.measure_where_due(rounds.done, metrics["seconds"])
            limit = session.clock.limit
            return limit is not None and metrics["seconds"] >= limit

        with context.reporting_end(lambda: rounds.done, "a GRPO run does not go on, begin another"):
            with session.clock.paused():
                trainer = build_trainer(recipe, policy, rounds, after_round)
            session.measure(0)
            run_trainer(trainer)
            session.save_all(rounds.done, draw_run)
    return run


def check_grpo(recipe: Recipe) -> Blueprint:
    """Check, from shapes alone, that the recipe can be trained by GRPO here; returns the model's blueprint.

    Raises:
        UsageError: TRL or PEFT is not installed, or the recipe asks for what they cannot do.
    """
    recipe.refuse_text("GRPO")
    grpo = recipe.grpo
    if find_spec("trl") is None:
        raise UsageError("GRPO needs TRL: pip install 'eggroll-rl[grpo]'")
    if grpo.lora_rank and find_spec("peft") is None:
        raise UsageError("grpo.lora_rank needs PEFT: pip install peft, or grpo.lora_rank=null")
    if recipe.engine.pool is not None or process_group() is not None:
        raise UsageError("GRPO trains in one process: start it without a launcher, with engine.pool=null")
    if not is_local(recipe.engine.name):
        raise UsageError(
            f"engine.name={recipe.engine.name}: GRPO's answers come from the weights that it trains, in this process: "
            "set engine.name=local"
        )
    if recipe.weights != "float":
        raise UsageError(f"weights={recipe.weights}: GRPO's gradients are of floats: set weights=float")
    blueprint = check_engine(recipe)
    model = blueprint.model
    kind = f"{recipe.model} is a {type(model).__name__}"
    if model.base_model is model or not hasattr(model.get_output_embeddings(), "weight"):
        raise UsageError(f"{kind}, which TRL cannot train: it needs a backbone and an output layer of their own")
    if grpo.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UsageError(f"{kind}, which has no gradient checkpointing: set grpo.gradient_checkpointing=false")
    if grpo.beta and model.config.model_type == "rwkv7" and not grpo.lora_rank:
        raise UsageError(
            f"{kind}, and TRL cannot load a second one as the reference: set grpo.beta=0, or grpo.lora_rank"
        )
    return blueprint


def _begin(run: RunFolder, recipe: Recipe, policy: Policy) -> None:
    facts = {
        "base_sha256": policy.weights_hash(),
        "package_version": __version__,
        "trl_version": version("trl"),
    }
    write_json(run.grpo_file, facts)
    run.write_recipe(recipe)
    run.write_environment(recipe)
