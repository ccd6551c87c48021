"""The training loop: prompts, population, answers, rewards, fitness, update."""

from collections.abc import Sequence
from pathlib import Path

from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.build import build_engine, check_engine, led_by_first_process, prompt_check
from eggroll_rl.es.fitness import check, fitness
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update, learning_rate
from eggroll_rl.report import draw_learning_curve, write_report
from eggroll_rl.runs.evaluation import Schedule, accuracy_reward, as_trl, evaluate
from eggroll_rl.runs.folder import RunFolder, describe
from eggroll_rl.runs.journal import Entry, Journal
from eggroll_rl.runs.progress import ProgressDisplay, Stopwatch
from eggroll_rl.runs.resuming import recipe_to_go_on, restore, save_snapshot
from eggroll_rl.runs.tracking import Trackers
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.interrupts import StopSignals


@led_by_first_process
def train(recipe: Recipe) -> RunFolder:
    """Train a recipe from start to end and return its run folder.

    Whatever is wrong with the recipe, its data or its rewards is found before the model is loaded. A run that was cut
    short at any moment, by a signal, a crash or a power cut, goes on with ``resume``.

    Raises:
        UsageError: a mistake in the recipe, the data or a reward, or a full disk.
        Interrupted: on Ctrl-C or SIGTERM, when what is being written is whole.
    """
    RunFolder(recipe.output_dir).refuse_unusable()
    return _train(recipe)


@led_by_first_process
def resume(folder: Path, overrides: Sequence[str] = ()) -> RunFolder:
    """Go on with a run that was cut short, and end with the weights and metrics of one that never was.

    Args:
        folder: the run's.
        overrides: of ``generations`` and ``minutes`` alone; minutes already spent count.

    Raises:
        UsageError: the folder, an override or the base model does not fit, or a record of the journal is damaged.
        Interrupted: as in ``train``.
    """
    run = RunFolder(folder)
    with run.journal(append=True) as journal:
        recipe = recipe_to_go_on(run, journal, overrides)
        is_left = journal.has_left(recipe)
        spent = f"{len(journal)} generations and {journal.seconds / 60:.1f} minutes"
    display = ProgressDisplay(recipe.generations, recipe.minutes)
    if not is_left:
        display.say(f"{folder} is complete after {spent}; nothing is left to do, unless you add generations=...")
        return run
    display.say(f"{folder} goes on after {spent}")
    run.write_recipe(recipe)
    return _train(recipe)


def _train(recipe: Recipe) -> RunFolder:
    check(recipe.fitness, recipe.population.size, recipe.population.antithetic)
    check_engine(recipe)
    data, run = load_data(recipe.data, recipe.seed, prompt_check(recipe)), RunFolder(recipe.output_dir)
    held_out, first = data.test(recipe.evaluation.n, recipe.evaluation.skip), data.batch(0)
    with (
        Scorer(recipe.rewards, recipe.scoring) as scorer,
        Scorer([accuracy_reward(recipe)], recipe.scoring) as grader,
        Trackers(recipe, run) as trackers,
        ProgressDisplay(recipe.generations, recipe.minutes) as display,
    ):
        for judge in (scorer, grader):
            judge.probe(first.prompts, first.columns)
        display.say(f"{recipe.model} -> {run.path}")
        engine = build_engine(recipe)
        with run.begin(recipe, engine) as journal, run.explained(journal, display.say), StopSignals() as signals:
            start = restore(engine, run, journal)
            trackers.start(start)
            clock = Stopwatch(recipe.minutes, journal.seconds)
            schedule = Schedule(recipe, journal.seconds_at(start - 1))

            def measure(generation: int) -> None:
                if generation not in journal.evaluations:  # else the run is resumed, and has measured it before
                    with clock.paused():
                        result = evaluate(engine, held_out, grader, recipe.sampling)
                    journal.append_evaluation(generation, clock.seconds, result.record())
                    display.say(f"held-out accuracy at generation {generation}: {result}")
                trackers.log("eval", run.log_evaluation(journal.evaluations[generation]))

            def measure_where_due(generation: int, seconds: float) -> None:
                if schedule.is_due(generation, seconds) or generation in journal.evaluations:
                    measure(generation)

            def step(entry: Entry) -> None:
                display.generation(trackers.log("train", run.log_generation(entry, engine.apply(entry.update))))
                clock.note("update")
                save_snapshot(engine, run, journal, entry.generation + 1)

            measure_where_due(start, journal.seconds_at(start))
            for entry in journal.entries(start):  # of a resumed run: what came after its last snapshot
                step(entry)
                measure_where_due(entry.generation + 1, entry.metrics["seconds"])

            clock = Stopwatch(recipe.minutes, journal.seconds)  # a replay is no training
            for generation in journal.remaining(recipe.generations):
                if clock.expired:
                    break
                examples, population = data.batch(generation), Population(recipe.seed, generation, recipe.population)
                completions = engine.generate(examples.prompts, recipe.sampling, population)
                clock.note("generate")
                scores = scorer(as_trl(completions, examples.prompts), examples.prompts, examples.columns)
                weights_N = fitness(scores.rewards_NP, recipe.fitness, recipe.population.antithetic)
                lr = learning_rate(recipe.optimizer, generation, recipe.generations)
                update = Update(population, tuple(weights_N.tolist()), lr)
                entry = describe(update, examples, completions, scores, clock.lap("score"))
                with signals.held():
                    journal.append(entry)  # write-ahead: from here on the generation is part of the run
                    step(entry)
                measure_where_due(generation + 1, entry.metrics["seconds"])

            if len(journal) not in journal.evaluations:
                measure(len(journal))
            _finish(run, engine, journal, clock.seconds)
            display.say(f"model, metrics, samples, learning curve and report.html are in {run.path}")
    return run


def _finish(run: RunFolder, engine: Engine, journal: Journal, seconds: float) -> None:
    run.save_model(engine)
    draw_learning_curve(run)
    journal.append_end(engine.weights_hash(), seconds)
    write_report(run.path)
