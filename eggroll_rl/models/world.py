"""The RWKV World tokenizer as a Hugging Face tokenizer: greedy longest match over the bytes of UTF-8.

A token is a string of as many characters as it has bytes (latin-1), so that tokens that cut characters have a name too.
"""

import reprlib
import shutil
from ast import literal_eval
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizer

from eggroll_rl.models.rwkv7 import RWKV7Config

VOCABULARY = "rwkv_vocab_v20230424.txt"
END_OF_TEXT = "<|rwkv_tokenizer_end_of_text|>"  # id 0, which the vocabulary leaves free
CHAT_TEMPLATE = r"""
{%- for message in messages %}
{%- set lines = (message['content'] | replace('\r\n', '\n') | trim).split('\n') | select %}
{{- (message['role'] | capitalize) + ': ' + (lines | join('\n')) + '\n\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}
""".strip()


class RwkvTokenizer(PreTrainedTokenizer):
    """The tokenizer of the published RWKV models; the class bears the name that their Hugging Face folders give, which
    load by it without remote code.

    Its one special token, id 0, ends texts and pads. Bytes that are no UTF-8, as where an answer ends within a
    character, decode to U+FFFD, and the ids of a model's spare rows to nothing.

    Args:
        vocab_file: lines of ``id literal bytes``; default: the one in the ``rwkv`` package.

    Raises:
        ValueError: the file is something else.
    """

    vocab_files_names = {"vocab_file": VOCABULARY}  # noqa: RUF012  an attribute of the base class
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str | None = None, **kwargs: Any):
        self.vocab_file = vocab_file or str(files("rwkv") / VOCABULARY)
        self._vocabulary = load_vocabulary(self.vocab_file)
        self._added_tokens_decoder = {0: AddedToken(END_OF_TEXT, special=True, normalized=False)}
        kwargs |= {"bos_token": None, "unk_token": None, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
        kwargs.setdefault("chat_template", CHAT_TEMPLATE)
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return 1 + len(self._vocabulary.id_of)

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary.id_of | self._added_tokens_encoder

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self._vocabulary.split(text.encode().decode("latin-1"))

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._vocabulary.id_of.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._vocabulary.token_of.get(index, "")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        own = self._vocabulary.id_of
        return b"".join(token.encode("latin-1" if token in own else "utf-8") for token in tokens).decode(
            errors="replace"
        )

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        path = Path(save_directory) / (f"{filename_prefix}-{VOCABULARY}" if filename_prefix else VOCABULARY)
        if not (path.exists() and path.samefile(self.vocab_file)):
            shutil.copyfile(self.vocab_file, path)
        return (str(path),)


class Vocabulary:
    """Tokens and their ids; among the tokens is every single byte."""

    def __init__(self, id_of: dict[str, int]):
        self.id_of = id_of
        self.token_of = {index: token for token, index in id_of.items()}
        sizes: dict[str, set[int]] = {}
        for token in id_of:
            sizes.setdefault(token[:2], {1}).add(len(token))
        self._sizes = {start: sorted(found, reverse=True) for start, found in sizes.items()}

    def split(self, text: str) -> list[str]:
        """Tokens of ``text``: from left to right, the longest that fits each time."""
        tokens, position = [], 0
        while position < len(text):
            for size in self._sizes.get(text[position : position + 2], (1,)):
                token = text[position : position + size]
                if token in self.id_of:
                    break
            tokens.append(token)
            position += len(token)
        return tokens


@cache
def load_vocabulary(path: str) -> Vocabulary:
    id_of = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                index, rest = line.split(" ", 1)
                literal, size = rest.rsplit(" ", 1)
                token = literal_eval(literal)
                token = token.encode() if isinstance(token, str) else token
                if not isinstance(token, bytes) or len(token) != int(size):
                    raise ValueError(f"{literal} has not {size} bytes")
                id_of[token.decode("latin-1")] = int(index)
            except (ValueError, SyntaxError) as error:
                raise ValueError(f"{path} is no RWKV vocabulary: {reprlib.repr(line)}") from error
    if not all(chr(byte) in id_of for byte in range(256)):
        raise ValueError(f"{path} is no RWKV vocabulary: it lacks tokens of single bytes")
    return Vocabulary(id_of)


AutoTokenizer.register(RWKV7Config, RwkvTokenizer)
