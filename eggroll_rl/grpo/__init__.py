"""The GRPO baseline: a recipe's model, prompts, rewards, decoding and evaluation under TRL's ``GRPOTrainer``.

TRL has the advantages, the loss, the gradients and the steps. Answers come from this package's engines, which run on
the weights that are trained, and rewards from ``Scorer``: neither is slower or judged otherwise than in an EGGROLL run.
"""

import json
from importlib.metadata import version
from importlib.util import find_spec

from eggroll_rl import __version__
from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.build import check_engine, prompt_check
from eggroll_rl.engines.fleet.spmd import process_group
from eggroll_rl.grpo.policy import Policy
from eggroll_rl.grpo.rounds import Rounds
from eggroll_rl.grpo.trainer import build_trainer, run_trainer
from eggroll_rl.models.loading import empty_model
from eggroll_rl.report import draw_learning_curve, write_report
from eggroll_rl.runs.evaluation import Schedule, accuracy_reward, evaluate
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.progress import ProgressDisplay, Stopwatch
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.durable import replace_file
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.interrupts import Interrupted, StopSignals


def train(recipe: Recipe) -> RunFolder:
    """Train a recipe by GRPO and return its run folder: as ``eggroll_rl.train.train``, but it cannot be resumed.

    A generation is a batch of rollouts with all its optimizer steps. The minutes are those of training alone.

    Raises:
        UsageError: a mistake in the recipe, the data or a reward, something is not installed, or a full disk.
        Interrupted: on Ctrl-C or SIGTERM.
    """
    run = RunFolder(recipe.output_dir)
    run.refuse_unusable()
    check(recipe)
    asked = recipe.data.model_copy(update={"prompts": recipe.grpo.prompts})
    data = load_data(asked, recipe.seed, prompt_check(recipe))
    held_out, first = data.test(recipe.evaluation.n, recipe.evaluation.skip), data.batch(0)
    with (
        Scorer(recipe.rewards, recipe.scoring) as scorer,
        Scorer([accuracy_reward(recipe)], recipe.scoring) as grader,
        ProgressDisplay(recipe.generations, recipe.minutes) as display,
        StopSignals(),
    ):
        for judge in (scorer, grader):
            judge.probe(first.prompts, first.columns)
        display.say(f"{recipe.model} -> {run.path} (GRPO)")
        policy = Policy(recipe)
        rounds = Rounds(recipe, data, policy, scorer)
        schedule = Schedule(recipe)
        measured: set[int] = set()

        def measure() -> None:
            with rounds.clock.paused(), policy.answering() as engine:
                result = evaluate(engine, held_out, grader, recipe.sampling)
            measured.add(rounds.done)
            run.log_evaluation({"generation": rounds.done, "seconds": rounds.clock.seconds, **result.record()})
            display.say(f"held-out accuracy at generation {rounds.done}: {result}")

        def after_round(logs: dict[str, float]) -> bool:
            metrics, samples = rounds.finish(logs)
            display.generation(run.log(metrics, samples))
            if schedule.is_due(rounds.done, metrics["seconds"]):
                measure()
            return rounds.clock.expired

        trainer = build_trainer(recipe, policy, rounds, after_round)
        _begin(run, recipe, policy)
        rounds.clock = Stopwatch(recipe.minutes)
        measure()
        try:
            run_trainer(trainer)
        except Interrupted:
            display.say(f"cut short after {rounds.done} generations; a GRPO run does not go on, begin another")
            raise
        if rounds.done not in measured:
            measure()
        with policy.answering() as engine:
            run.save_model(engine)
        draw_learning_curve(run)
        write_report(run.path)
        display.say(f"model, metrics, samples, learning curve and report.html are in {run.path}")
    return run


def check(recipe: Recipe) -> None:
    """Find out, from shapes alone, whether the recipe can be trained by GRPO here.

    Raises:
        UsageError: TRL or PEFT is not installed, or the recipe asks for what they cannot do.
    """
    grpo = recipe.grpo
    if find_spec("trl") is None:
        raise UsageError("GRPO needs TRL: pip install 'eggroll-rl[grpo]'")
    if grpo.lora_rank and find_spec("peft") is None:
        raise UsageError("grpo.lora_rank needs PEFT: pip install peft, or grpo.lora_rank=null")
    if recipe.engine.pool is not None or process_group() is not None:
        raise UsageError("GRPO trains in one process: start it without a launcher, with engine.pool=null")
    check_engine(recipe)
    model = empty_model(recipe.model)
    kind = f"{recipe.model} is a {type(model).__name__}"
    if model.base_model is model or not hasattr(model.get_output_embeddings(), "weight"):
        raise UsageError(f"{kind}, which TRL cannot train: it needs a backbone and an output layer of their own")
    if grpo.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UsageError(f"{kind}, which has no gradient checkpointing: set grpo.gradient_checkpointing=false")
    if grpo.beta and model.config.model_type == "rwkv7" and not grpo.lora_rank:
        raise UsageError(f"{kind}, of which TRL loads no second one as a reference: set grpo.beta=0, or grpo.lora_rank")


def _begin(run: RunFolder, recipe: Recipe, policy: Policy) -> None:
    facts = {"base_sha256": policy.engine.weights_hash(), "package_version": __version__, "trl_version": version("trl")}
    run.make()
    replace_file(run.grpo_file, lambda path: path.write_text(json.dumps(facts, indent=2) + "\n"))
    run.write_recipe(recipe)
    run.write_environment(recipe)
