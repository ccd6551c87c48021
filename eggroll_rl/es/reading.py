"""Watches a forward pass to find which parameters it reads, in which module, and by which operation.

On the meta device nothing is computed, so a model of any size is watched within seconds. There, code that asks a tensor
for its value gets a fixed one: True, or 1.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CASTS = (Tensor.float, Tensor.to, Tensor.type, Tensor.type_as)
TRANSPOSES: tuple[Any, ...] = (torch.t, Tensor.t, vars(torch._C.TensorBase)["T"].__get__)
FIXED_VALUES: dict[Any, Any] = {Tensor.__bool__: True, Tensor.item: 1, Tensor.__contains__: False}


class Reading(NamedTuple):
    """One way in which a forward pass reads a parameter.

    Attributes:
        reader: path of the module whose forward pass reads it.
        operation: name of torch's function; ``_T`` is added where the parameter is transposed.
        operand: shape of the other operand.
    """

    reader: str
    operation: str
    operand: tuple[int, ...]


class Readings(NamedTuple):
    """What a forward pass of ``rows`` rows reads.

    Attributes:
        of: parameter name -> its readings.
        inputs: module path -> shapes of the first tensor that the module gets.
    """

    rows: int
    of: Mapping[str, frozenset[Reading]]
    inputs: Mapping[str, frozenset[tuple[int, ...]]]

    def is_by_rows(self, shape: tuple[int, ...]) -> bool:
        """Whether the leading axis of a tensor of this shape is the rows, or rows x something."""
        return len(shape) > 1 and shape[0] % self.rows == 0


class Aliases:
    """Recognises parameters, and their casts and transposes, by identity. It keeps them alive, so that no other tensor
    gets the same ``id``."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        self._known = {id(tensor): (name, False, tensor) for name, tensor in parameters.items()}

    def find(self, value: Any) -> tuple[str, bool] | None:
        """A parameter's name, and whether ``value`` is its transpose; None if it is none."""
        known = self._known.get(id(value))
        return known[:2] if known else None

    def follow(self, function: Any, args: tuple[Any, ...], result: Any) -> bool:
        """If ``function`` only cast or transposed a parameter, remember ``result`` as its alias and return True."""
        known = self._known.get(id(args[0])) if args else None
        transposes = function in TRANSPOSES
        if known is None or not (transposes or function in CASTS):
            return False
        self._known.setdefault(id(result), (known[0], known[1] != transposes, result))
        return True


class _Watch(TorchFunctionMode):
    def __init__(self, parameters: Mapping[str, Tensor]):
        super().__init__()
        self.aliases = Aliases(parameters)
        self.readers = [""]
        self.found: dict[str, set[Reading]] = defaultdict(set)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FIXED_VALUES and args[0].is_meta:
            return FIXED_VALUES[function]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor | tuple | list) and not self.aliases.follow(function, args, result):
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            for tensor in tensors:
                if known := self.aliases.find(tensor):
                    operand = next((tuple(other.shape) for other in tensors if other is not tensor), ())
                    name = getattr(function, "__name__", str(function))
                    self.found[known[0]].add(Reading(self.readers[-1], name + ("_T" if known[1] else ""), operand))
        return result


@torch.no_grad()
def watch(module: nn.Module, rows: int, forward: Callable[[], Any]) -> Readings:
    """Run ``forward``, a pass of ``rows`` rows through ``module``, and return what it reads of it."""
    mode, inputs = _Watch(dict(module.named_parameters())), defaultdict(set)

    def enter(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mode.readers.append(path)
        first = next((leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor)), None)
        if first is not None:
            inputs[path].add(tuple(first.shape))

    def leave(*_: Any) -> None:
        mode.readers.pop()

    with ExitStack() as hooks:
        for path, part in module.named_modules():
            hooks.callback(part.register_forward_pre_hook(partial(enter, path), with_kwargs=True).remove)
            hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
        with mode:
            forward()
    return Readings(
        rows,
        {name: frozenset(readings) for name, readings in mode.found.items()},
        {path: frozenset(shapes) for path, shapes in inputs.items()},
    )
