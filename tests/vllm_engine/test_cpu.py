"""The kernel of ``vllm_cpu`` against vLLM's own way to add adapters, token by token."""

import pytest
import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from eggroll_rl.engines.vllm.cpu import add_adapters_by_kernel

TOKENS, SLOTS, SIZE_I, SIZES_O = 37, 5, 48, (64, 24, 24)  # as of queries, keys and values


def wrapper_of(slot_M: Tensor, is_prefill: bool) -> PunicaWrapperCPU:
    wrapper = PunicaWrapperCPU(64, 64, "cpu")
    wrapper._token_lora_indices[:TOKENS] = slot_M
    wrapper.indices_len[0] = TOKENS
    wrapper.is_prefill = is_prefill
    if is_prefill:
        wrapper._update_prefill_metadata(wrapper.token_lora_indices)
    return wrapper


@pytest.mark.parametrize("is_prefill", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_adds_what_vllm_adds(dtype: torch.dtype, tolerance: float, is_prefill: bool) -> None:
    torch.manual_seed(0)
    slot_M = torch.randint(SLOTS, (TOKENS,)).sort().values
    x_MI = torch.randn(TOKENS, 2 * SIZE_I).to(dtype)[:, SIZE_I:]  # strided
    a = [torch.randn(SLOTS, 1, 1, SIZE_I).to(dtype) for _ in SIZES_O]
    b = [0.1 * torch.randn(SLOTS, 1, size, 1).to(dtype) for size in SIZES_O]
    base_MO = torch.randn(TOKENS, sum(SIZES_O)).to(dtype)
    expected_MO, given_MO = base_MO.clone(), base_MO.clone()
    wrapper = wrapper_of(slot_M, is_prefill)
    wrapper.add_lora_linear(expected_MO, x_MI, a, b, 1.0, SIZES_O)
    add_adapters_by_kernel(wrapper)
    assert "add_lora_linear" in vars(wrapper)
    wrapper.add_lora_linear(given_MO, x_MI, a, b, 1.0, SIZES_O)
    torch.testing.assert_close(given_MO, expected_MO, rtol=tolerance, atol=tolerance)
    assert not torch.equal(given_MO, base_MO)


def test_a_token_without_an_adapter_stays_as_it_is() -> None:
    slot_M = torch.where(torch.arange(TOKENS) % 2 == 0, -1, SLOTS - 1)
    wrapper = wrapper_of(slot_M, is_prefill=False)
    add_adapters_by_kernel(wrapper)
    y_MO = torch.zeros(TOKENS, 8)
    wrapper.add_lora_linear(
        y_MO, torch.ones(TOKENS, 4), [torch.ones(SLOTS, 1, 1, 4)], [torch.ones(SLOTS, 1, 8, 1)], 1.0, (8,)
    )
    assert torch.equal(y_MO[::2], torch.zeros_like(y_MO[::2]))
    assert torch.equal(y_MO[1::2], torch.full_like(y_MO[1::2], 4.0))


def test_higher_ranks_are_left_to_vllm() -> None:
    torch.manual_seed(0)
    slot_M, x_MI = torch.randint(SLOTS, (TOKENS,)), torch.randn(TOKENS, 4)
    a, b = [torch.randn(SLOTS, 1, 8, 4)], [torch.randn(SLOTS, 1, 6, 8)]
    wrapper = wrapper_of(slot_M, is_prefill=False)
    add_adapters_by_kernel(wrapper)
    y_MO = torch.zeros(TOKENS, 6)
    wrapper.add_lora_linear(y_MO, x_MI, a, b, 1.0, (6,))
    expected_MO = torch.einsum("mi,mri,mor->mo", x_MI, a[0][slot_M, 0], b[0][slot_M, 0])
    torch.testing.assert_close(y_MO, expected_MO, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_logits_are_those_of_vllm(dtype: torch.dtype, tolerance: float, rank: int) -> None:
    """Over a vocabulary that the logits pad."""
    torch.manual_seed(0)
    vocabulary, slot_M = 50, torch.randint(SLOTS, (TOKENS,))
    x_MI, y_MO = torch.randn(TOKENS, SIZE_I).to(dtype), torch.randn(TOKENS, vocabulary + 6).to(dtype)
    a = torch.randn(SLOTS, 1, rank, SIZE_I).to(dtype)
    b = 0.1 * torch.randn(SLOTS, 1, vocabulary, rank).to(dtype)
    wrapper = wrapper_of(slot_M, is_prefill=True)
    wrapper._sampler_indices[:TOKENS], wrapper.indices_len[1] = slot_M, TOKENS
    expected_MO, given_MO = y_MO.clone(), y_MO.clone()
    wrapper.add_lora_logits(expected_MO, x_MI, a, b, 1.0)
    add_adapters_by_kernel(wrapper)
    assert "add_lora_logits" in vars(wrapper)
    wrapper.add_lora_logits(given_MO, x_MI, a, b, 1.0)
    torch.testing.assert_close(given_MO, expected_MO, rtol=tolerance, atol=tolerance)
    assert not torch.equal(given_MO, y_MO)
