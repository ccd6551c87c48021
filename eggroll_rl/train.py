"""The training loop: prompts, population, answers, rewards, fitness, update."""

from eggroll_rl.config import Recipe
from eggroll_rl.data import load_data
from eggroll_rl.engines import build_engine
from eggroll_rl.evaluation import accuracy_reward, as_trl, evaluate
from eggroll_rl.fitness import check, fitness
from eggroll_rl.population import Population
from eggroll_rl.progress import ProgressDisplay, Stopwatch
from eggroll_rl.report import draw_learning_curve
from eggroll_rl.run import RunFolder
from eggroll_rl.scoring import Scorer
from eggroll_rl.update import Update, learning_rate


def train(recipe: Recipe) -> RunFolder:
    """Train a recipe from start to end and return its run folder.

    Whatever is wrong with the recipe, its data or its rewards is found before the model is loaded. Ctrl-C ends the
    training early: the model as it stands is evaluated and saved.

    Raises:
        UsageError: a mistake in the recipe, the data or a reward.
    """
    check(recipe.fitness, recipe.population.size, recipe.population.antithetic)
    data = load_data(recipe.data, recipe.seed)
    held_out, first = data.test(recipe.evaluation.n), data.batch(0)
    with (
        Scorer(recipe.rewards, recipe.scoring) as scorer,
        Scorer([accuracy_reward(recipe)], recipe.scoring) as grader,
        ProgressDisplay(recipe.generations, recipe.minutes) as display,
    ):
        for judge in (scorer, grader):
            judge.probe(first.prompts, first.columns)
        run = RunFolder.create(recipe)
        display.say(f"{recipe.model} -> {run.path}")
        engine = build_engine(recipe)

        def measure(generation: int) -> None:
            with clock.paused():
                result = evaluate(engine, held_out, grader, recipe.sampling)
            run.log_evaluation(generation, clock.seconds, result)
            display.say(f"held-out accuracy at generation {generation}: {result}")

        clock, generation = Stopwatch(recipe.minutes), 0
        measure(generation)
        try:
            while generation < recipe.generations and not clock.expired:
                examples = data.batch(generation)
                population = Population(recipe.seed, generation, recipe.population)
                completions = engine.generate(examples.prompts, recipe.sampling, population)
                scores = scorer(as_trl(completions, examples.prompts), examples.prompts, examples.columns)
                weights_N = fitness(scores.rewards_NP, recipe.fitness, recipe.population.antithetic)
                update = Update(
                    population, tuple(weights_N.tolist()), learning_rate(recipe.optimizer, generation, recipe.generations)
                )
                update_rms = engine.apply(update)
                display.generation(run.log_generation(update, update_rms, examples, completions, scores, clock.lap()))
                generation += 1
                if recipe.evaluation.every and generation % recipe.evaluation.every == 0:
                    measure(generation)
        except KeyboardInterrupt:
            display.say(f"interrupted in generation {generation}; the model as it stands is evaluated and saved")
        measure(generation)
        engine.save(run.model)
        draw_learning_curve(run)
        display.say(f"model, metrics, samples and learning curve are in {run.path}")
    return run
