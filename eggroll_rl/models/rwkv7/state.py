"""The recurrent state of an RWKV-7."""

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

STATE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"  # transformers' name


class RWKV7State:
    """Recurrent state: for each layer the last input of both mixers [B, D] and the WKV matrix [B, H, K, K]
    (fp32; rows are keys, columns values). On CUDA a token without gradients overwrites these tensors."""

    is_compileable = False

    def __init__(self, layers: int):
        self.att_shift_BD: list[Tensor | None] = [None] * layers
        self.ffn_shift_BD: list[Tensor | None] = [None] * layers
        self.wkv_BHKK: list[Tensor | None] = [None] * layers
        self.tokens = 0

    def get_seq_length(self, layer: int = 0) -> int:
        return self.tokens

    def select_rows(self, rows: Tensor) -> None:
        """Keep (and reorder to) the given rows of the batch."""
        for layers in (self.att_shift_BD, self.ffn_shift_BD, self.wkv_BHKK):
            layers[:] = [None if tensor is None else tensor.index_select(0, rows) for tensor in layers]

    reorder_cache = batch_select_indices = select_rows

    def reset_rows(self, rows: Tensor | slice) -> None:
        """Put the given rows back to the start of a sequence."""
        for tensor in (*self.att_shift_BD, *self.ffn_shift_BD, *self.wkv_BHKK):
            if tensor is not None:
                tensor[rows] = 0

    def copy_rows(self, rows: Tensor, first: int) -> None:
        """Put copies of the given rows into those from ``first`` on."""
        if len(rows):
            for tensor in (*self.att_shift_BD, *self.ffn_shift_BD, *self.wkv_BHKK):
                if tensor is not None:
                    tensor[first : first + len(rows)] = tensor[rows]
