"""The geometry of an RWKV-7."""

from typing import Any

from transformers import PretrainedConfig


class RWKV7Config(PretrainedConfig):
    """Geometry of an RWKV-7; the ``*_low_rank_dim`` are the ranks of the decay, in-context rate, value and gate LoRAs.

    ``head_norm_eps`` is the epsilon of the norm over heads: ``head_dim * norm_eps`` unless given (BlinkDL's code has
    64e-5). ``unused_v_lora``: the first layer carries a value LoRA that nothing reads, as in BlinkDL's files.
    ``pth_order``: the tensors' names in the file that the model comes from, where their order is not the usual one.
    """

    model_type = "rwkv7"
    attribute_map = {"num_attention_heads": "num_heads"}  # noqa: RUF012  the name that other code uses
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    def __init__(
        self,
        vocab_size: int = 65536,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        head_dim: int = 64,
        intermediate_size: int | None = None,
        decay_low_rank_dim: int = 64,
        a_low_rank_dim: int = 64,
        v_low_rank_dim: int = 32,
        gate_low_rank_dim: int = 128,
        norm_eps: float = 1e-5,
        head_norm_eps: float | None = None,
        use_cache: bool = True,
        unused_v_lora: bool = False,
        pth_order: list[str] | None = None,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.head_dim = head_dim
        self.num_heads = hidden_size // head_dim
        self.intermediate_size = intermediate_size or 4 * hidden_size
        self.decay_low_rank_dim = decay_low_rank_dim
        self.a_low_rank_dim = a_low_rank_dim
        self.v_low_rank_dim = v_low_rank_dim
        self.gate_low_rank_dim = gate_low_rank_dim
        self.norm_eps = norm_eps
        self.head_norm_eps = head_norm_eps or head_dim * norm_eps
        self.use_cache = use_cache
        self.unused_v_lora = unused_v_lora
        self.pth_order = pth_order
        for derived in ("num_heads", "num_attention_heads"):
            kwargs.pop(derived, None)
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
