"""The page of one run."""

import json
from pathlib import Path
from typing import Any

from eggroll_rl.config import Recipe, load_recipe
from eggroll_rl.report.drawing import Charts
from eggroll_rl.report.drift import drift
from eggroll_rl.report.pages import write_page
from eggroll_rl.report.run_charts import run_charts
from eggroll_rl.report.series import History
from eggroll_rl.report.words import count, duration, interval, plural, setting, share
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.system.errors import UsageError

Facts = list[tuple[str, str]]


def recipe_of_run(run: RunFolder) -> Recipe:
    """The recipe of a run, whole or cut short.

    Raises:
        UsageError: there is no run, or its recipe is not one.
    """
    if not is_run(run):
        needed = f"{run.recipe_file.name} and {run.metrics_file.name}"
        raise UsageError(f"{run.path} is neither a run (with {needed}) nor a comparison (with compare.json); name one")
    return load_recipe(run.recipe_file)


def write_run_page(run: RunFolder, recipe: Recipe, path: Path) -> None:
    """Write the page of a run of answers.

    Raises:
        UsageError: the file cannot be written.
    """
    history = History.of(run, recipe)
    is_grpo = run.grpo_file.is_file()
    facts = {
        **common_facts(run, recipe),
        "kind": f"{'GRPO' if is_grpo else 'EGGROLL'} run",
        "lede": _lede(history),
        "figures": [*_figures(history), *_drift(drift(recipe.model, run.model))],
        "sections": run_charts(history, Charts()),
        "samples": before_and_after(run),
        "after": plural(len(history.generations), "generation"),
        "failed": _failed(history),
        "failures": _failures(history),
        "settings": settings_shown(recipe, is_grpo),
    }
    write_page("run", facts, path)


def common_facts(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Facts that the pages of runs of answers and runs of text share, by the names of the template."""
    return {
        "title": f"{model_name(recipe.model)} on {Path(recipe.source).name}",
        "description": recipe.description,
        "options": trainer_options(run),
        "recipe": run.recipe_file.read_text(encoding="utf-8"),
        "environment": facts_in_file(run.environment_file),
    }


def is_run(run: RunFolder) -> bool:
    return run.recipe_file.is_file() and run.metrics_file.is_file()


def model_name(model: str) -> str:
    """The name of a model in a title: of a folder the last part, of an embedded one without the prefix."""
    return Path(model).name if model.startswith(("/", ".")) else model.removeprefix("embedded:")


def last_answers(run: RunFolder) -> list[dict[str, Any]]:
    """The answers of the last evaluation, in the order of the problems."""
    return _answers_at(run.answers(), -1)


def before_and_after(run: RunFolder) -> list[dict[str, Any]]:
    """Each problem with the answers of the first and of the last evaluation."""
    answers = run.answers()
    if len({answer["generation"] for answer in answers}) < 2:
        return []
    pairs = zip(_answers_at(answers, 0), _answers_at(answers, -1), strict=False)
    return [
        {"prompt": first["prompt"], "answers": [{**first, "who": "Before"}, {**last, "who": "After"}]}
        for first, last in pairs
    ]


def trainer_options(run: RunFolder) -> list[tuple[str, str, str]]:
    """(name, value, meaning) of each option of the trainer that began the run; empty where a recipe began it."""
    if not run.options_file.is_file():
        return []
    return [(name, value, says) for name, value, says in json.loads(run.options_file.read_text(encoding="utf-8"))]


def facts_in_file(file: Path) -> Facts:
    """The facts of ``environment.json`` for people; empty where there is no such file."""
    if not file.is_file():
        return []
    return environment_facts(json.loads(file.read_text(encoding="utf-8")))


def environment_facts(facts: dict[str, Any]) -> Facts:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rows = [
        ("Device", facts["device"]),
        ("CPUs", f"{facts['cpus']}, with {plural(facts['threads'], 'thread')} of torch"),
        ("System", facts["platform"]),
    ]
    return [*rows, *([("Python", facts["python"])] if "python" in facts else []), ("Packages", versions)]


def _answers_at(answers: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    generations = sorted({answer["generation"] for answer in answers})
    return [answer for answer in answers if generations and answer["generation"] == generations[index]]


def _lede(history: History) -> str:
    spent = f"{plural(len(history.generations), 'generation')}, {duration(training_seconds(history))} of training"
    evaluations = history.evaluations
    if not evaluations:
        return f"{spent}; held-out accuracy was not measured."
    accuracies = [
        f"{share(m['accuracy'])} [{interval(m['low'], m['high'])}]" for m in (evaluations[0], evaluations[-1])
    ]
    problems = f"on {plural(evaluations[-1]['n'], 'held-out problem')}"
    if len(evaluations) == 1:
        return f"Accuracy {problems} is {accuracies[0]} after {spent}."
    return f"Accuracy {problems} went from {accuracies[0]} to {accuracies[1]} in {spent}."


def _figures(history: History) -> list[tuple[str, str, str]]:
    rollouts, tokens = len(history.generations) * history.rollouts, history.total("tokens")
    seconds = history.total("seconds_generation") or training_seconds(history)
    figures = [
        ("Generations", count(len(history.generations)), f"{plural(history.rollouts, 'rollout')} each"),
        ("Rollouts", count(rollouts), f"{rollouts / seconds:,.1f} per second" if seconds else ""),
        ("Tokens generated", count(tokens), f"{tokens / seconds:,.0f} per second" if seconds else ""),
        ("Training time", duration(training_seconds(history)), "evaluation not counted"),
    ]
    evaluations = history.evaluations
    if evaluations:
        last = evaluations[-1]
        detail = f"Wilson 95%: {interval(last['low'], last['high'])}"
        figures.insert(0, ("Held-out accuracy", share(last["accuracy"]), detail))
        if "gained" in last:
            figures.append(("Problems gained", count(last["gained"]), f"{count(last['lost'])} lost, of {last['n']}"))
        if "retention" in last:
            before = evaluations[0].get("retention")
            detail = "" if before is None else f"{share(before)} before"
            figures.append(("Not trained", share(last["retention"]), detail))
    return figures


def _drift(moved: float | None) -> list[tuple[str, str, str]]:
    return [] if moved is None else [("Drift", f"{moved:.2%}", "of the weights' norm")]


def training_seconds(history: History) -> float:
    """Seconds of training until the last record."""
    records = history.generations or history.evaluations
    return float(records[-1]["seconds"]) if records else 0.0


def _rewards(history: History) -> float:
    """How many values the reward functions were asked for."""
    functions = max((len(record.get("rewards", {})) for record in history.generations), default=0)
    return len(history.generations) * history.rollouts * max(functions, 1)


def _failed(history: History) -> str:
    total = sum(history.failures().values())
    asked = plural(_rewards(history), "reward")
    return f"{count(total)} of {asked} failed; their answers counted for nothing." if total else f"None of {asked}."


def _failures(history: History) -> list[tuple[str, str, str]]:
    asked = _rewards(history)
    return [(kind, count(number), share(number / asked)) for kind, number in history.failures().items() if number]


def settings_shown(recipe: Recipe, is_grpo: bool) -> Facts:
    """The recipe in brief."""
    population, optimizer, sampling = recipe.population, recipe.optimizer, recipe.sampling
    rewards = ", ".join(f"{r.fn} (weight {r.weight:g})" for r in recipe.rewards)
    decoding = f"temperature {sampling.temperature:g}" if sampling.temperature else "greedy"
    choice = sampling.model_dump(include={"top_k", "top_p", "min_p", "repetition_penalty"}, exclude_defaults=True)
    decoding = ", ".join([decoding, *([setting(choice)] if choice else [])])
    method: Facts = [("GRPO", setting(recipe.grpo.model_dump()))]
    if not is_grpo:
        pairs = "antithetic pairs" if population.antithetic else "no pairs"
        shape = f"{plural(population.size, 'member')}, rank {population.rank}, sigma {population.sigma:g}, {pairs}"
        method = [
            ("Population", f"{shape}, {population.noise} noise"),
            ("Fitness", setting(recipe.fitness.model_dump())),
            ("Optimizer", f"{optimizer.name}, learning rate {optimizer.lr:g}, {optimizer.schedule}"),
        ]
    prompts = recipe.grpo.prompts if is_grpo else recipe.data.prompts
    return [
        ("Model", recipe.model),
        ("Engine", f"{recipe.engine.name}, {recipe.engine.dtype}{replicas(recipe)}"),
        ("Data", f"{recipe.data.name}, {plural(prompts, 'prompt')} a generation"),
        ("Rewards", rewards),
        *method,
        ("Sampling", f"{decoding}, at most {plural(sampling.max_new_tokens, 'token')}{held_out_length(recipe)}"),
        *limits(recipe),
    ]


def held_out_length(recipe: Recipe) -> str:
    length = recipe.evaluation.max_new_tokens
    return f", on held-out problems {length:,}" if length else ""


def replicas(recipe: Recipe) -> str:
    return f", {plural(recipe.engine.pool.replicas, 'replica')}" if recipe.engine.pool else ""


def limits(recipe: Recipe) -> Facts:
    minutes = f" or {recipe.minutes:g} minutes" if recipe.minutes else ""
    return [("Limit", f"{plural(recipe.generations, 'generation')}{minutes}"), ("Seed", str(recipe.seed))]
