"""What is known of a model before its weights are loaded: shapes, evolving parameters, tokenizer. Made once per run."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from eggroll_rl.config import ParametersConfig, Recipe
from eggroll_rl.es.experts import is_experts
from eggroll_rl.es.parameters import EvolvedParameter, select
from eggroll_rl.es.perturbable import check_perturbable, override, summarised
from eggroll_rl.es.reading import Readings, watch
from eggroll_rl.models.egg.model import EggForCausalLM
from eggroll_rl.models.int8 import empty_matrix, int8_linears, to_int8
from eggroll_rl.models.loading import check_weights, empty_like, empty_model, load_tokenizer
from eggroll_rl.models.naming import locate_model
from eggroll_rl.system.errors import UsageError

ROWS, TOKENS = 7, 5  # of the watched forward pass: primes, so that their product is told from other sizes


@dataclass(frozen=True)
class Anatomy:
    """A model without weights, what a forward pass reads of it, and what evolves.

    Attributes:
        model: on the meta device; its parameters have the canonical names.
        readings: of one forward pass.
        evolved: the parameters with noise, all of which are read.
        parameters: the recipe's lists that chose them.
    """

    model: PreTrainedModel
    readings: Readings
    evolved: tuple[EvolvedParameter, ...]
    parameters: ParametersConfig

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}

    def check_perturbable(self) -> None:
        """Raise UsageError for all that cannot be perturbed (see ``eggroll_rl.es.perturbable``)."""
        check_perturbable(self.model, self.evolved, self.readings, self.parameters)

    def shares(self) -> Iterator[str]:
        """Phrases for the user: how many of all parameters evolve, are never read, or are frozen."""
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        evolved = {parameter.name for parameter in self.evolved}
        unread = [name for name in sizes if name not in self.readings.of]
        still = [name for name in sizes if name not in evolved and name in self.readings.of]
        total = sum(sizes.values())
        yield f"{_share(sizes, evolved, total)} evolve"
        if unread:
            yield f"{_share(sizes, unread, total)} are read by no answer and stay as they are ({summarised(unread)})"
        if still:
            yield f"{_share(sizes, still, total)} stay as they are by parameters.* or their shape ({summarised(still)})"


@dataclass(frozen=True)
class Blueprint(Anatomy):
    """The anatomy of a recipe's model, with where its files are (``source``) and its tokenizer."""

    source: str
    tokenizer: PreTrainedTokenizerBase


def inspect(recipe: Recipe) -> Blueprint:
    """Look at a recipe's model without loading it.

    Raises:
        UsageError: there is no such model, it is no causal language model or has no tokenizer, its forward pass cannot
            be watched without weights, or nothing in it evolves.
    """
    check_weights(recipe.model, recipe.weights)
    anatomy = dissect(empty_model(recipe.model), recipe.parameters)
    if recipe.weights == "int8":
        check_int8(anatomy)
    return Blueprint(**vars(anatomy), source=locate_model(recipe.model), tokenizer=load_tokenizer(recipe.model))


def dissect(model: PreTrainedModel, parameters: ParametersConfig) -> Anatomy:
    """The anatomy of a model, loaded or empty.

    Raises:
        UsageError: see ``inspect``.
    """
    empty = model if model.device.type == "meta" else empty_like(model)
    readings = readings_of(empty)
    if isinstance(empty, EggForCausalLM):  # a model of integers: all of it evolves
        return Anatomy(empty, readings, tuple(empty.evolved()), parameters)
    read = {name: tuple(p.shape) for name, p in empty.named_parameters() if name in readings.of}
    stacks, vectors = _stacks(empty, readings), _vectors(empty)
    return Anatomy(empty, readings, tuple(select(read, parameters, stacks, vectors)), parameters)


def check_int8(anatomy: Anatomy) -> None:
    """Check that a model runs with int8 linear layers, and that every evolving matrix is in one of them.

    Raises:
        UsageError: it does not, or one is elsewhere.
    """
    model, kind = anatomy.model, type(anatomy.model).__name__
    layers = int8_linears(model)
    if not layers:
        raise UsageError(f"weights=int8 is for linear layers of floats, and a {kind} has none: set weights=float")
    head = model.get_output_embeddings().weight
    shapes = dict(model.named_parameters())
    others = [
        parameter.name
        for parameter in anatomy.evolved
        if parameter.name.removesuffix(".weight") not in layers
        and len(parameter.shape) > 1
        and parameter.kind == "lowrank"
        and shapes[parameter.name] is not head
    ]
    if others:
        int8 = [parameter.name for parameter in anatomy.evolved if parameter.name not in others]
        raise UsageError(
            f"weights=int8 is for linear layers, and {summarised(others)} of {kind} are in none: set weights=float, or "
            + override(others, int8, anatomy.parameters)
        )
    try:
        readings_of(to_int8(empty_like(model), {path: empty_matrix(layer) for path, layer in layers.items()}))
    except UsageError as error:
        raise UsageError(
            f"weights=int8: a {kind} reads matrices without calling their layers: set weights=float ({error})"
        ) from error


def readings_of(model: PreTrainedModel) -> Readings:
    """Watch a forward pass of the empty model, and return which parameters it reads, where and how.

    Raises:
        UsageError: the forward pass needs the values of tensors.
    """
    module: Any
    for module in model.modules():
        if is_experts(module):
            module.config._experts_implementation = "batched_mm"  # the one whose shapes do not depend on values
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long, device="meta")
    try:
        return watch(model, ROWS, partial(model, input_ids=ids, use_cache=True))
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"{type(model).__name__}: what its answers read cannot be found without its weights "
            f"({str(error).splitlines()[0]}); use another architecture"
        ) from error


def _stacks(model: PreTrainedModel, readings: Readings) -> set[str]:
    """Tensors of three axes that are stacks of matrices: those of experts, and those that ``bmm`` alone reads."""
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3
        and (
            is_experts(model.get_submodule(name.rpartition(".")[0]))
            or {reading.operation for reading in readings.of.get(name, ())} == {"bmm"}
        )
    }


def _vectors(model: PreTrainedModel) -> set[str]:
    """Tensors of two axes that are no matrices: the biases of experts."""
    experts = {path for path, module in model.named_modules() if is_experts(module)}
    return {
        name
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] in experts and parameter.ndim < 3
    }


def _share(sizes: Mapping[str, int], names: Iterable[str], total: int) -> str:
    count = sum(sizes[name] for name in names)
    return f"{count:,} of {total:,} parameters ({count / total:.0%})"
