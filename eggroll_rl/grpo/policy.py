"""The model that GRPO trains, and the engine that answers with its weights."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from eggroll_rl.config import Recipe, SamplingConfig
from eggroll_rl.engines.device import device_of
from eggroll_rl.engines.local.decoding import Endings
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.models.blueprint import inspect
from eggroll_rl.models.loading import load_model


class Policy:
    """The model that learns and the engine that answers with its weights.

    Both share one model in memory. Where the engine runs in bfloat16, or adapters are trained, the engine has a copy of
    its own, into which the trained weights are written before it answers.
    """

    def __init__(self, recipe: Recipe):
        model, self.tokenizer = load_model(recipe.model)
        self.trained: Any = model.to(device_of(recipe.engine.device))  # type: ignore[arg-type]
        dtype = getattr(torch, recipe.engine.dtype)
        is_shared = dtype == model.dtype and recipe.grpo.lora_rank is None
        actor = model if is_shared else copy.deepcopy(model).to(dtype)
        whole = partial(Endings, keeps_end=True)  # the end token was sampled too
        self.engine = LocalEngine.of_model(recipe, actor, self.tokenizer, learns=False, endings=whole)
        trained = {parameter.name for parameter in inspect(recipe).evolved}
        for name, parameter in model.named_parameters():  # the engine took it away
            parameter.requires_grad_(recipe.grpo.parameters == "all" or name in trained)
        if recipe.grpo.lora_rank:
            self.trained = _with_adapters(model, recipe.grpo.lora_rank)

    @contextmanager
    def answering(self) -> Iterator[LocalEngine]:
        """The engine, with the weights as they are now; no dropout inside."""
        is_training = self.trained.training
        self.trained.eval()
        if self.engine.model is not self.trained:
            self._copy()
        self.engine.weights_changed()
        try:
            yield self.engine
        finally:
            self.trained.train(is_training)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[list[Completion]]:
        """The engine's answers, with the weights as they are now."""
        with self.answering() as engine:
            return engine.generate(prompts, sampling)

    def weights_hash(self) -> str:
        """SHA-256 of the weights that answer, in hexadecimal."""
        with self.answering() as engine:
            return engine.weights_hash()

    def save(self, folder: Path) -> None:
        """Write the model that answers as an ordinary Hugging Face folder."""
        with self.answering() as engine:
            engine.save(folder)

    @torch.no_grad()
    def _copy(self) -> None:
        model = self.trained.get_base_model() if hasattr(self.trained, "get_base_model") else self.trained
        for name, target in self.engine.model.named_parameters():
            path, _, attribute = name.rpartition(".")
            layer = model.get_submodule(path)
            if hasattr(layer, "get_delta_weight") and attribute == "weight":
                target.copy_(layer.base_layer.weight + layer.get_delta_weight("default"))
            else:
                target.copy_(getattr(getattr(layer, "base_layer", layer), attribute))


def _with_adapters(model: PreTrainedModel, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )
