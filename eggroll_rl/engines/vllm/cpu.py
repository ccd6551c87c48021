"""What vLLM does otherwise for us on a CPU.

Adapters of rank 1 by a kernel of one pass (``cpu.c``): vLLM copies the adapter of every token before it multiplies,
which costs more than the model itself does. And sampling while prompts come in pieces.

Legend: M tokens, S slots, O out, I in.
"""

import ctypes
from collections.abc import Sequence
from functools import cache, wraps
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from eggroll_rl.system.native import kernels_or_none

KERNELS = {torch.float32: "add_adapter_float", torch.bfloat16: "add_adapter_bf16"}


def add_adapters_by_kernel(wrapper: Any) -> None:
    """Make a ``PunicaWrapperCPU`` add its adapters by the kernel; without a compiler it is left as it is."""
    if _library() is not None:
        wrapper.add_lora_linear = MethodType(_add_lora_linear, wrapper)
        wrapper.add_lora_logits = MethodType(_add_lora_logits, wrapper)


def sample_whole_prompts(runner: Any) -> None:
    """Let a request draw no random number before its prompt has been read to the end.

    vLLM samples after each piece of a prompt, throws the token away and turns the request's generator back, which a
    generator of a CPU cannot do: the run would end there.
    """
    sample = runner.sample_tokens

    @wraps(sample)
    def sample_tokens(*arguments: Any, **options: Any) -> Any:
        generators, count = runner.input_batch.generators, runner.input_batch.num_reqs
        unread = runner.discard_request_mask.np[:count].nonzero()[0].tolist()
        aside = {row: generators.pop(row) for row in unread if row in generators}
        try:
            return sample(*arguments, **options)
        finally:
            generators.update(aside)

    runner.sample_tokens = sample_tokens


def _add_lora_linear(
    self: Any,
    y_MO: Tensor,
    x_MI: Tensor,
    lora_a_stacked: Sequence[Tensor],
    lora_b_stacked: Sequence[Tensor],
    scale: float,
    output_slices: Sequence[int],
    **options: Any,
) -> None:
    """As ``PunicaWrapperCPU.add_lora_linear``; a token without an adapter stays as it is."""
    if scale != 1.0 or options or not _has_kernel(y_MO, x_MI, lora_a_stacked[0]):
        type(self).add_lora_linear(self, y_MO, x_MI, lora_a_stacked, lora_b_stacked, scale, output_slices, **options)
        return
    slot_M, first = self.token_lora_indices, 0
    for a_S11I, b_S1O1, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
        add_adapter_(y_MO[:, first : first + size], x_MI, a_S11I, b_S1O1, slot_M)
        first += size


def _add_lora_logits(
    self: Any,
    y_MO: Tensor,
    x_MI: Tensor,
    lora_a_stacked: Tensor,
    lora_b_stacked: Tensor,
    scale: float,
    **options: Any,
) -> None:
    """As ``PunicaWrapperCPU.add_lora_logits``; a row without an adapter stays as it is."""
    if scale != 1.0 or options or not _has_kernel(y_MO, x_MI, lora_a_stacked):
        type(self).add_lora_logits(self, y_MO, x_MI, lora_a_stacked, lora_b_stacked, scale, **options)
        return
    add_adapter_(y_MO[:, : lora_b_stacked.shape[2]], x_MI, lora_a_stacked, lora_b_stacked, self.sampler_indices)


def _has_kernel(y_MO: Tensor, x_MI: Tensor, a_S1rI: Tensor) -> bool:
    return a_S1rI.shape[2] == 1 and y_MO.dtype == x_MI.dtype == a_S1rI.dtype and y_MO.dtype in KERNELS


def add_adapter_(y_MO: Tensor, x_MI: Tensor, a_S11I: Tensor, b_S1O1: Tensor, slot_M: Tensor) -> None:
    """``y += (x . a) b`` in place, with the vectors of each token's slot; slot -1: nothing.

    Args:
        y_MO, x_MI: rows contiguous, of one dtype, float32 or bfloat16.
        a_S11I, b_S1O1: contiguous, of the same dtype.
        slot_M: int64; more than M entries are not read.
    """
    library = _library()
    assert library is not None and x_MI.stride(1) == y_MO.stride(1) == 1 and len(slot_M) >= len(x_MI)
    getattr(library, KERNELS[y_MO.dtype])(
        len(x_MI), x_MI.shape[1], y_MO.shape[1], x_MI.data_ptr(), x_MI.stride(0), y_MO.data_ptr(), y_MO.stride(0),
        a_S11I.data_ptr(), b_S1O1.data_ptr(), slot_M.data_ptr(),
    )  # fmt: skip


@cache
def _library() -> ctypes.CDLL | None:
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    arguments = [size, size, size, pointer, size, pointer, size, pointer, pointer, pointer]
    signatures = dict.fromkeys(KERNELS.values(), arguments)
    source, without = Path(__file__).with_suffix(".c"), "vLLM adds adapters by its own kernels, more slowly"
    return kernels_or_none(source, signatures, without)
