"""From prompts to tokens, and the tokens that end an answer."""

import copy
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from jinja2 import TemplateError
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from eggroll_rl.config import Recipe
from eggroll_rl.es.rollout import Prompt
from eggroll_rl.system.errors import UsageError

TEMPLATE_REFUSES = (TemplateError, TypeError, ValueError, LookupError)  # what the code of a chat template may raise
CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")  # as configurations say it
SAID = "the answer"  # a model's words in a probe of a chat template


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, options: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids of one prompt; see ``encode_all``."""
    return encode_all(tokenizer, [prompt], options)[0]


def encode_all(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], options: Mapping[str, Any] | None = None
) -> list[list[int]]:
    """Token ids of prompts, each open at its end, so that the model goes on where the prompt stops.

    Text gets what the tokenizer puts before a text, unless it begins so itself, and nothing behind. Chat messages go
    through the tokenizer's chat template, with ``options`` as its arguments; a last message of the assistant's is left
    open, any other is followed by the opening of an answer.

    Raises:
        UsageError: there is no chat template, or it refuses the messages or leaves a system message out.
    """
    texts = [prompt if isinstance(prompt, str) else chat_text(tokenizer, prompt, options or {}) for prompt in prompts]
    whole = [text or "a" for text in texts]  # an empty text would not show which tokens a tokenizer puts in front
    bare, framed = tokenizer(whole, add_special_tokens=False)["input_ids"], tokenizer(whole)["input_ids"]
    encoded = []
    for prompt, text, ids, with_specials in zip(prompts, texts, bare, framed, strict=True):
        opening = text_opening(with_specials, ids) if isinstance(prompt, str) else []
        own = ids if text else []
        encoded.append(own if own[: len(opening)] == opening else opening + own)
    return encoded


def chat_text(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]], options: Mapping[str, Any]) -> str:
    """A chat as the text that the model reads, by the tokenizer's chat template.

    Raises:
        UsageError: there is no chat template, or it refuses the messages or leaves a system message out.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            "the prompt is a chat and the model's tokenizer has no chat template: write data.prompt as text, or take "
            "the instruction-tuned model"
        )
    is_opened = chat[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=not is_opened, continue_final_message=is_opened, **options
        )
    except TEMPLATE_REFUSES as error:
        roles = ", ".join(message["role"] for message in chat)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UsageError(
            f"the model's chat template refuses messages of the roles {roles}: {reason}; change data.prompt, "
            "data.system or data.chat_template"
        ) from error
    if chat[0]["role"] == "system" and chat[0]["content"].strip() not in str(text):
        raise UsageError("the model's chat template leaves the system message out: write it into the user's message")
    return str(text)


def text_opening(framed: list[int], bare: list[int]) -> list[int]:
    """The tokens that a tokenizer puts before a text, such as the one that begins it.

    Args:
        framed: the text's tokens with all that the tokenizer adds.
        bare: without.
    """
    starts = range(len(framed) - len(bare) + 1)
    return framed[: next((start for start in starts if framed[start : start + len(bare)] == bare), 0)]


def end_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: all that the model's generation config, tokenizer and chat template name."""
    named: Any = config.eos_token_id
    ends = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id, turn_end(tokenizer)]
    return list(dict.fromkeys(end for end in ends if end is not None))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token by which the chat template closes an answer; None: there is no template, or no such token."""
    if not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": SAID}]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    except TEMPLATE_REFUSES:
        return None  # it refuses the probe; each prompt is checked by itself
    after = text.rpartition(SAID)[2].lstrip()
    special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    closing = max((token for token in special if after.startswith(token)), key=len, default=None)
    return None if closing is None else special[closing]


def context_of(config: PretrainedConfig) -> int | None:
    """How many tokens a model has positions for, prompt and answer together; None: no limit, or it names none."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in CONTEXTS)
    return next((length for length in found if isinstance(length, int) and length > 0), None)


@dataclass(frozen=True)
class PromptCheck:
    """Called with a prompt, it raises UsageError if the model cannot be asked it.

    Args:
        tokenizer: the model's.
        options: arguments of its chat template.
        vocabulary: tokens that the model knows.
        context: tokens that prompt and answer may have together; None: any number.
        new_tokens: length of an answer.
        length_key: the recipe's section whose ``max_new_tokens`` that is.
    """

    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, Any]
    vocabulary: int
    context: int | None
    new_tokens: int
    length_key: str = "sampling"

    def __post_init__(self) -> None:
        template = str(self.tokenizer.chat_template or "")
        unread = [name for name in self.options if not re.search(rf"\b{re.escape(name)}\b", template)]
        if unread:
            raise UsageError(f"data.chat_template.{unread[0]}: the model's chat template reads no such argument")

    @classmethod
    def of(cls, recipe: Recipe, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The check of a recipe's prompts, for a model of this configuration."""
        bounds = [context_of(config), recipe.engine.vllm.max_model_len if recipe.engine.name == "vllm" else None]
        return cls(
            tokenizer,
            recipe.data.chat_template,
            vocabulary=config.get_text_config().vocab_size,
            context=min((bound for bound in bounds if bound is not None), default=None),
            new_tokens=recipe.longest_answer,
            length_key="sampling" if recipe.longest_answer == recipe.sampling.max_new_tokens else "evaluation",
        )

    def __call__(self, prompt: Prompt) -> None:
        """Return if the model can be asked ``prompt``.

        Raises:
            UsageError: the chat template refuses the prompt, it is empty, a token is unknown, or it is too long.
        """
        ids = encode(self.tokenizer, prompt, self.options)
        if not ids:
            raise UsageError(
                f"the prompt {prompt!r} is empty, and a model cannot begin with nothing: see to data.prompt"
            )
        if max(ids) >= self.vocabulary:
            raise UsageError(
                f"the prompt {reprlib.repr(prompt)} has token {max(ids)}, and the model knows {self.vocabulary}: its "
                "tokenizer belongs to another model"
            )
        if self.context is not None and len(ids) + self.new_tokens > self.context:
            raise UsageError(
                f"the prompt {reprlib.repr(prompt)} has {len(ids)} tokens, and with {self.length_key}.max_new_tokens="
                f"{self.new_tokens} more than the model's context of {self.context}: shorten one"
            )

    def copy(self) -> Self:
        """The same check with a copy of the tokenizer, which two threads cannot share."""
        return replace(self, tokenizer=copy.deepcopy(self.tokenizer))
