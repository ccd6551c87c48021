"""EGG as a Hugging Face model: saved as safetensors, sampled by ``generate``.

Legend: B batch, T tokens, D width, L layers, V = 256 bytes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from eggroll_rl.es.integers import sixteenths
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.models.egg.arithmetic import BYTES, DOCUMENT, ONE, Weights, read, step
from eggroll_rl.models.egg.device import Int8Weights
from eggroll_rl.models.naming import NEW
from eggroll_rl.models.rwkv7 import STATE
from eggroll_rl.system.errors import UsageError


class EggConfig(PretrainedConfig):
    """Geometry: width D, a power of four so that its root is whole, and number of layers. Beyond a width of 256 a
    perturbed product may not fit 32 bits.

    Raises:
        UsageError: another width, or no layer.
    """

    model_type = "egg"
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    def __init__(self, hidden_size: int = 256, num_hidden_layers: int = 6, **kwargs: Any):
        if hidden_size not in {4**d for d in range(1, 5)}:
            raise UsageError(f"hidden_size {hidden_size} is no power of four up to 256: choose 4, 16, 64 or 256")
        if num_hidden_layers < 1:
            raise UsageError(f"num_hidden_layers {num_hidden_layers}: choose 1 or more")
        self.hidden_size, self.num_hidden_layers, self.vocab_size = hidden_size, num_hidden_layers, BYTES
        kwargs |= {"bos_token_id": DOCUMENT, "eos_token_id": DOCUMENT, "pad_token_id": DOCUMENT}
        kwargs |= {"vocab_size": BYTES, "tie_word_embeddings": False}
        super().__init__(**kwargs)


def _integers(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.int8), requires_grad=False)


class EggState:
    """Recurrent state, int32 [B, L, D], in the place of a transformers cache."""

    is_compileable = False

    def __init__(self, state_BLD: Tensor, tokens: int = 0):
        self.state_BLD, self.tokens = state_BLD, tokens

    def get_seq_length(self, layer: int = 0) -> int:
        return self.tokens

    def select_rows(self, rows: Tensor) -> None:
        """Keep (and reorder to) the given rows of the batch."""
        self.state_BLD = self.state_BLD.index_select(0, rows)

    reorder_cache = batch_select_indices = select_rows


class EggLayer(nn.Module):
    """The parameters of one layer."""

    def __init__(self, width: int):
        super().__init__()
        for name in ("Wf", "Uf", "Wh", "Uh"):
            setattr(self, name, _integers(width, width))
        self.bf, self.bh = _integers(width), _integers(width)
        self.W1, self.W2 = _integers(4 * width, width), _integers(width, 4 * width)
        self.ln1, self.ln2 = _integers(width), _integers(width)


class EggForCausalLM(PreTrainedModel, GenerationMixin):
    """EGG as a Hugging Face model; its logits are in nats, so that generation samples what the model foretells."""

    config_class = EggConfig
    _is_stateful = True

    def __init__(self, config: EggConfig):
        super().__init__(config)
        width = config.hidden_size
        self.emb, self.head, self.ln_out = _integers(BYTES, width), _integers(BYTES, width), _integers(width)
        self.layers = nn.ModuleList(EggLayer(width) for _ in range(config.num_hidden_layers))
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits: transformers has no word for a model without floats."""
        return torch.float32

    def _init_weights(self, module: nn.Module) -> None:
        """Matrices ``round(16 N(0, 1))``, norms 1, biases 0."""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 2:
                words = torch.randint(2**32, parameter.shape, device=parameter.device)  # which no processor rounds
                parameter.copy_(sixteenths(words, first=0.5))
            else:
                parameter.fill_(ONE if name.startswith("ln") else 0)

    def evolved(self) -> list[EvolvedParameter]:
        """All parameters: matrices with noise of rank one, vectors with dense noise."""
        return [
            EvolvedParameter(name, tuple(parameter.shape), "lowrank" if parameter.ndim == 2 else "dense")
            for name, parameter in self.named_parameters()
        ]

    def new_state(self, rows: int) -> Tensor:
        """The state before a document, int8 [rows, L, D]."""
        size = (rows, self.config.num_hidden_layers, self.config.hidden_size)
        return torch.zeros(size, dtype=torch.int8, device=self.emb.device)

    def _as_read(self) -> Weights:
        """The parameters, by what multiplies integers where they are."""
        kind = Weights if self.device.type == "cpu" else Int8Weights
        return kind(dict(self.named_parameters()))

    def bits_per_byte(self, byte_MT: Tensor) -> float:
        """Of all bytes but the first of each row, from the state before a document."""
        likelihoods, _ = read(self._as_read(), byte_MT, self.new_state(len(byte_MT)))
        return -int(likelihoods.sum()) / (ONE * likelihoods.numel())

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: EggState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        past_key_values: EggState | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] (fp32, nats) of the last ``logits_to_keep`` tokens (0: all) and the state for what follows.

        Tokens whose mask is 0 leave no state.
        """
        weights = self._as_read()
        state = cache or past_key_values or EggState(self.new_state(len(input_ids)))
        logits = []
        for position, byte_B in enumerate(input_ids.unbind(1)):
            logits_BV, state.state_BLD = step(weights, byte_B, state.state_BLD)
            logits.append(logits_BV)
            if attention_mask is not None and input_ids.shape[1] > 1:
                state.state_BLD *= attention_mask[:, position - input_ids.shape[1], None, None].int()
        state.tokens += input_ids.shape[1]
        logits_BTV = torch.stack(logits[-logits_to_keep:], dim=1) * (math.log(2) / ONE)
        loss = None if labels is None else self.loss_function(logits_BTV, labels, BYTES, **kwargs)
        kept: Any = {STATE: None if use_cache is False else state}
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, **kept)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        state = kwargs.get(STATE)
        return {
            "input_ids": input_ids if state is None else input_ids[:, state.tokens :],
            "attention_mask": attention_mask,
            STATE: state,
            "use_cache": kwargs.get("use_cache", True),
        }


def named_config(name: str) -> EggConfig:
    """The geometry in such a name.

    Raises:
        UsageError: there is none in it, or there is no such model.
    """
    sizes = name.removeprefix(NEW).split("x")
    if len(sizes) != 2 or not all(size.isascii() and size.isdecimal() and len(size) < 5 for size in sizes):
        raise UsageError(f"model {name!r}: a new model is {NEW}WIDTHxLAYERS, as in {NEW}64x2")
    try:
        return EggConfig(*map(int, sizes))
    except UsageError as error:
        raise UsageError(f"model {name!r}: {error}") from error


def new_model(config: EggConfig, seed: int) -> EggForCausalLM:
    """A model before its first update; the seed decides its weights, on any machine the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EggForCausalLM(config).eval()


AutoConfig.register("egg", EggConfig)
AutoModelForCausalLM.register(EggConfig, EggForCausalLM)
