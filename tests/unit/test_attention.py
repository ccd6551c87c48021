"""Attention of one token by key-value heads, against transformers' own."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from eggroll_rl.engines.local.attention import NAME, group_queries, grouped_attention

M, H, G, D = 3, 6, 2, 8


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("tokens", "before"), [(1, 0), (1, 9), (4, 0)])
def test_it_is_what_sdpa_gives(tokens: int, before: int, masked: bool) -> None:
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = H // G, True
    query = torch.randn(M, tokens, H, D).transpose(1, 2)
    key, value = torch.randn(2, M, G, 20, D)[..., : before + tokens, :]
    mask = torch.ones(M, 1, tokens, before + tokens, dtype=torch.bool).tril(before) if masked else None
    if masked and before:
        mask[0, :, :, :2] = False
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    given, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    assert given.shape == expected.shape == (M, tokens, H, D)
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("chosen", ["sdpa", "eager"])
def test_a_model_answers_as_before_and_is_saved_without_it(chosen: str, tmp_path) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=chosen,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids, mask = torch.randint(50, (2, 7)), torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    before = model.generate(ids, **options)
    group_queries(model)
    assert model.config._attn_implementation == (NAME if chosen == "sdpa" else chosen)
    assert torch.equal(model.generate(ids, **options), before)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
