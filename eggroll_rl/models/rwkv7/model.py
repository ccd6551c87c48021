"""RWKV-7 as a model of transformers: initial weights, forward pass, generation."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from eggroll_rl.models.rwkv7.config import RWKV7Config
from eggroll_rl.models.rwkv7.layers import Block, TimeMix
from eggroll_rl.models.rwkv7.state import STATE, RWKV7State


class RWKV7PreTrainedModel(PreTrainedModel):
    config_class = RWKV7Config
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012  an attribute of the base class
    _is_stateful = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """Start values after BlinkDL's: mixing and decay spread over channels and depth, zero output matrices."""
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, TimeMix):
            self._init_time_mix(module)
        elif isinstance(module, Block):
            channel = torch.linspace(0, 1, self.config.hidden_size)
            module.ffn.x_k.data.copy_(1 - channel ** (1 - module.layer / self.config.num_hidden_layers) ** 4)
            nn.init.zeros_(module.ffn.value.weight)

    def _init_time_mix(self, module: TimeMix) -> None:
        layers = self.config.num_hidden_layers
        depth = module.layer / max(layers - 1, 1)
        remaining = 1 - module.layer / layers
        channel = torch.linspace(0, 1, self.config.hidden_size)
        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        for name, power in powers.items():
            getattr(module, f"x_{name}").data.copy_(1 - channel ** (power * remaining))
        module.w_lora.up.bias.data.copy_(-6 + 6 * channel ** (0.85 + depth**0.5) + 0.5)
        module.k_k.data.fill_(0.85)
        module.k_a.data.fill_(1.0)
        module.r_k.data.fill_(-0.04)
        for lora in (module.w_lora, module.a_lora, module.g_lora, getattr(module, "v_lora", None)):
            if lora is not None:
                nn.init.zeros_(lora.down.weight)
                nn.init.orthogonal_(lora.up.weight, gain=0.1)
        if module.layer > 0:
            module.v_lora.up.bias.data.fill_(0.73)
        nn.init.zeros_(module.o_proj.weight)


class RWKV7Model(RWKV7PreTrainedModel):
    """Embedding, blocks and the last norm."""

    def __init__(self, config: RWKV7Config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = cast(nn.Embedding, value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: RWKV7State | None = None,
        use_cache: bool | None = None,
        past_key_values: RWKV7State | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run tokens [B, T] (left-padded where the mask [B, >= T] is 0) through the model, from the given state on;
        transformers names it ``cache``, or ``past_key_values``."""
        x_BTD = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        state = cache or past_key_values or RWKV7State(len(self.layers))
        mask_BT1 = None
        if attention_mask is not None and x_BTD.shape[1] > 1:
            mask_BT1 = attention_mask[:, -x_BTD.shape[1] :, None].to(x_BTD.dtype)
        v_first = None
        for block in self.layers:
            x_BTD, v_first = block(x_BTD, state, v_first, mask_BT1)
        state.tokens += x_BTD.shape[1]
        keep = self.config.use_cache if use_cache is None else use_cache
        kept: Any = {STATE: state if keep else None}  # no transformers Cache
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x_BTD), **kept)


class RWKV7ForCausalLM(RWKV7PreTrainedModel, GenerationMixin):
    """RWKV-7 with its language-model head."""

    def __init__(self, config: RWKV7Config):
        super().__init__(config)
        self.model = RWKV7Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: RWKV7State | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: RWKV7State | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As ``RWKV7Model``, with logits [B, T, V] of the last ``logits_to_keep`` tokens (0: all), and a loss."""
        outputs = self.model(input_ids, attention_mask, inputs_embeds, cache or past_key_values, use_cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        state: Any = {STATE: outputs.get(STATE)}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **state)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        state = kwargs.get(STATE)
        return {
            "input_ids": input_ids if state is None else input_ids[:, state.tokens :],
            "attention_mask": attention_mask,
            STATE: state,
            "use_cache": kwargs.get("use_cache", True),
        }


AutoConfig.register("rwkv7", RWKV7Config)
AutoModel.register(RWKV7Config, RWKV7Model)
AutoModelForCausalLM.register(RWKV7Config, RWKV7ForCausalLM)
