"""Engines by name. Each is imported only when a recipe asks for it."""

from eggroll_rl.config import Recipe
from eggroll_rl.engines.base import Engine


def build_engine(recipe: Recipe) -> Engine:
    """Load the recipe's model into the engine that the recipe names."""
    if recipe.engine.name == "rwkv":
        from eggroll_rl.engines.rwkv import RWKVEngine

        return RWKVEngine.from_recipe(recipe)
    from eggroll_rl.engines.transformers import TransformersEngine

    return TransformersEngine.from_recipe(recipe)
