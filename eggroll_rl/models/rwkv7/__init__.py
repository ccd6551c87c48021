"""RWKV-7 "Goose" (x070) as a Hugging Face model: batched, differentiable, with recurrent state and left padding.

Parameter names are those of the published Hugging Face checkpoints (``model.layers.0.attn.r_proj.weight``).
"""

from eggroll_rl.models.rwkv7.config import RWKV7Config
from eggroll_rl.models.rwkv7.model import RWKV7ForCausalLM, RWKV7Model
from eggroll_rl.models.rwkv7.recurrence import wkv7
from eggroll_rl.models.rwkv7.state import STATE, RWKV7State

__all__ = ["STATE", "RWKV7Config", "RWKV7ForCausalLM", "RWKV7Model", "RWKV7State", "wkv7"]
