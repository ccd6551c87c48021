"""What a recipe would load, generate and hold in memory: arithmetic on shapes, no weights."""

from collections.abc import Iterator

import torch

from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.data.encoding import encode_all
from eggroll_rl.engines.build import check_model, prompt_check
from eggroll_rl.engines.memory import free_bytes, row_bytes
from eggroll_rl.engines.needs import model_bytes, size, state_bytes, whitening_bytes
from eggroll_rl.engines.vllm.adapters import adapter_rank, slot_bytes, slots_of, slotted_of
from eggroll_rl.es.tensors import SHARD
from eggroll_rl.planning.reading import ending, plan_to_read


def plan(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Lines of the plan as (what, how much); the recipe's data is opened and its tokenizer loaded, its model is not."""
    blueprint = check_model(recipe)
    if recipe.text is not None:
        yield from plan_to_read(recipe, blueprint)
        return
    model, evolved = blueprint.model, blueprint.evolved
    total, evolving = sum(p.numel() for p in model.parameters()), sum(parameter.numel for parameter in evolved)
    matrices = [parameter for parameter in evolved if parameter.kind == "lowrank"]
    element = torch.empty((), dtype=getattr(torch, recipe.engine.dtype)).element_size()

    precision = recipe.engine.dtype if recipe.weights == "float" else f"int8, all else {recipe.engine.dtype}"
    yield "model", f"{recipe.model} ({type(model).__name__}, {total:,} parameters, {precision})"
    pool = recipe.engine.pool
    yield "engine", f"{recipe.engine.name} on {recipe.engine.device}" + (f", {pool.replicas} by Ray" if pool else "")
    yield (
        "evolving",
        f"{evolving:,} parameters ({evolving / total:.0%}): "
        f"{len(matrices)} matrices of rank-{recipe.population.rank} noise, "
        f"{len(evolved) - len(matrices)} tensors of dense noise",
    )
    for part in list(blueprint.shares())[1:]:
        yield "not evolving", part

    slots, slotted = (slots_of(recipe), slotted_of(blueprint)) if recipe.engine.name == "vllm" else (0, [])
    if slots:
        yield (
            "slots",
            f"{slots} x rank {adapter_rank(recipe.population.rank)} x {sum(sum(p.shape) for p in slotted):,} "
            f"(in + out of all matrices) x {element} bytes: {-(-recipe.population.size // slots)} waves per generation",
        )

    check = prompt_check(recipe, blueprint)
    data = load_data(recipe.data, recipe.seed, check)
    encoded = encode_all(check.tokenizer, data.batch(0).prompts, recipe.data.chat_template)
    yield "a prompt", str(check.tokenizer.decode(encoded[0]))
    lengths = list(map(len, encoded))
    prompt_tokens, new_tokens = max(lengths), recipe.sampling.max_new_tokens
    samples = f" x {recipe.fitness.samples} samples" if recipe.fitness.samples > 1 else ""
    factors = f"{recipe.population.size} members x {recipe.data.prompts} prompts{samples}"
    rollouts = recipe.rollouts
    yield "rollouts", f"{rollouts:,} per generation: {factors}"
    yield (
        "tokens",
        f"at most {rollouts * new_tokens:,} generated per generation ({new_tokens} each), after "
        f"{rollouts * prompt_tokens:,} of prompts (about {prompt_tokens} each)",
    )

    row = row_bytes(model.config, prompt_tokens + new_tokens, element)
    rows = min(rollouts, recipe.engine.max_rows or max(1, free_bytes(torch.device("cpu")) // 2 // row))
    pairs = recipe.population.size // (2 if recipe.population.antithetic else 1)
    held = {
        **model_bytes(recipe, blueprint),
        "noise": 4 * pairs * sum(parameter.noise_elements(recipe.population.rank) for parameter in evolved),
        "whitening": whitening_bytes(recipe, blueprint),
        "slots": slots * slot_bytes(recipe, slotted),
        f"a batch of {rows:,} rows": rows * row,
    }
    parts = ", ".join(f"{what} {size(count)}" for what, count in held.items() if count)
    yield "memory", f"about {size(sum(held.values()))}: {parts}"
    if recipe.snapshots.every:
        written, keep = state_bytes(recipe, blueprint), recipe.snapshots.keep
        yield (
            "snapshots",
            f"{size(written)} written every {recipe.snapshots.every:,} generations, {keep} stay; at most {size(SHARD)} "
            "of memory beyond the engine's own, while one is written or read",
        )
    yield from ending(recipe)
