"""Fused steps of an RWKV-7 in blocks of rows: a row's logits are its own, whoever else is in the batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from eggroll_rl.config import ParametersConfig
from eggroll_rl.engines.local.fused_plan import LEAST, block_of
from eggroll_rl.engines.local.fused_rwkv import FusedStep, in_panels
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.perturbation import Members
from eggroll_rl.models.blueprint import dissect

ROWS, TOKENS = 150, 6
NewModel = Callable[..., PreTrainedModel]


@pytest.fixture
def model(new_model: NewModel) -> Any:
    """Its products have sums of one stretch, of two and of three, and outputs that fill no panel."""
    return new_model("rwkv7", 0.2, hidden_size=64, intermediate_size=460, num_hidden_layers=2)


@pytest.fixture
def logits(model: Any) -> Callable[[slice, int], Tensor]:
    """The last logits of some of 150 rows, made together on so many threads."""
    step = FusedStep(model)
    noise = Noise(3).draw(dissect(model, ParametersConfig(frozen=())).evolved, 0, range(ROWS))
    token_TM = torch.randint(150, (TOKENS, ROWS), generator=torch.Generator().manual_seed(0))
    coefficient_M = torch.linspace(-0.1, 0.1, ROWS)

    def logits(rows: slice, threads: int) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            state = step.new_state(len(range(*rows.indices(ROWS))))
            members = Members(noise, coefficient_M[rows].contiguous(), torch.arange(ROWS)[rows].contiguous())
            for token_M in token_TM:
                made = step(token_M[rows].contiguous(), state, members)
            return made.clone()
        finally:
            torch.set_num_threads(before)

    return logits


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [slice(150), slice(1), slice(7, 50), slice(3, 150, 2), slice(40, 120)])
def test_a_rows_logits_are_the_same_to_the_bit_in_any_block(
    logits: Callable[[slice, int], Tensor], rows: slice, threads: int
) -> None:
    assert torch.equal(logits(rows, threads), logits(slice(ROWS), 1)[rows])


def test_products_of_panels_are_those_of_torch(model: Any) -> None:
    step, state = FusedStep(model), model(torch.tensor([[1], [2]]), use_cache=True).past_key_values
    made = step(torch.tensor([3, 4]), state, None)
    whole = model(torch.tensor([[1, 3], [2, 4]])).logits[:, -1]
    torch.testing.assert_close(made, whole, rtol=1e-4, atol=1e-4)


def test_panels_hold_a_matrix_in_the_order_of_its_inputs() -> None:
    weight_OI = torch.arange(15.0).view(5, 3)
    first, second = in_panels(weight_OI, 4)
    assert first.tolist() == weight_OI[:4].T.tolist()
    assert second[:, 0].tolist() == weight_OI[4].tolist() and not second[:, 1:].any()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_blocks_are_as_many_for_each_thread(threads: int) -> None:
    for rows in range(1, 3000, 7):
        block = block_of(rows, threads)
        assert bool(block) == (rows >= LEAST * threads)
        if block:
            blocks = -(-rows // block)
            assert block % 4 == 0 and -(-blocks // threads) * block < rows / threads + block
