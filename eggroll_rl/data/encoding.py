"""From prompts to tokens, and the tokens that end an answer."""

from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from eggroll_rl.es.rollout import Prompt


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of plain text, or of chat messages in the tokenizer's template with the opening of an answer."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def end_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: those of a model's generation config, or else the tokenizer's."""
    ends: Any = config.eos_token_id
    ends = ends if isinstance(ends, list) else [tokenizer.eos_token_id if ends is None else ends]
    return [end for end in ends if end is not None]
