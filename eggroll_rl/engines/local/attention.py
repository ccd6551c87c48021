"""Attention of one token over a shared key-value head, without copies.

Where query heads share a key-value head, their queries are as good as several tokens of one head: attention over them
reads keys and values once. torch's own grouped attention reads them for each query head on a CPU; on CUDA, transformers
first copies them for each query head wherever there is a mask.

Legend: M rows, H query heads, G key-value heads, T tokens, D head size.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "grouped_sdpa"


def group_queries(model: PreTrainedModel) -> None:
    """Have a model that attends by ``sdpa`` attend by ``grouped_attention``."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, grouped_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def grouped_attention(
    module: nn.Module,
    query_MHTD: Tensor,
    key_MGTD: Tensor,
    value_MGTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' ``sdpa``, with its arguments and results; a single token's heads are grouped."""
    M, H, T, D = query_MHTD.shape
    G = key_MGTD.shape[1]
    if T > 1 or H == G or (attention_mask is not None and attention_mask.shape[1] > 1):
        return sdpa_attention_forward(
            module, query_MHTD, key_MGTD, value_MGTD, attention_mask, scaling=scaling, **options
        )
    grouped = query_MHTD.reshape(M, G, H // G, D)
    y = F.scaled_dot_product_attention(grouped, key_MGTD, value_MGTD, attention_mask, scale=scaling)
    return y.reshape(M, 1, H, -1), None
