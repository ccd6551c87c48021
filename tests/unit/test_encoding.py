"""Prompts and their tokens: what a model is asked is what the author wrote, open at its end."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast

from eggroll_rl.config import Recipe
from eggroll_rl.data.encoding import PromptCheck, context_of, encode, end_ids
from eggroll_rl.es.rollout import Prompt
from eggroll_rl.models.loading import load_tokenizer
from eggroll_rl.system.errors import UsageError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = CHATML.replace(
    "assistant\n' }}",
    "assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
)
REFUSES_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CLOSING = {"chatml": "<|im_end|>", "thinking": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>"}

OPENING = {
    "chatml": "<|im_start|>",
    "thinking": "<|im_start|>",
    "gemma": "<start_of_turn>",
    "llama3": "<|start_header_id|>",
}


@cache
def bytewise(template: str | None = None, special: tuple[str, ...] = (), frame: str = "$A") -> PreTrainedTokenizerFast:
    """Bytes and special tokens, ``<s>`` 0 and ``</s>`` 1 first; ``frame`` is what stands around a text."""
    names = ["<s>", "</s>", *special]
    vocabulary = {token: index for index, token in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    plain = Tokenizer(models.BPE(vocabulary, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(names)
    plain.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


DROPS_SYSTEM = CHATML.replace("messages %}", "messages if m['role'] != 'system' %}")
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "chatml": lambda: bytewise(CHATML, ("<|im_start|>", "<|im_end|>")),
    "thinking": lambda: bytewise(THINKING, ("<|im_start|>", "<|im_end|>"), "$A </s>"),
    "gemma": lambda: bytewise(REFUSES_SYSTEM, ("<start_of_turn>", "<end_of_turn>"), "<s> $A"),
    "llama3": lambda: bytewise(HEADERS, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<s> $A </s>"),
    "base": lambda: bytewise(None, (), "<s> $A"),
    "embedded llama": cache(lambda: load_tokenizer("embedded:llama-countdown")),
    "embedded rwkv": cache(lambda: load_tokenizer("embedded:rwkv7-countdown")),
}
OTHERS = {"drops": lambda: bytewise(DROPS_SYSTEM, ("<|im_start|>", "<|im_end|>"))}
BEGINS = {"gemma", "llama3", "base"}  # those that put <s> before a text
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
CHATS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXTS.map(lambda t: "say: " + t)}
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS, begun=st.booleans())
def test_text_has_one_beginning_and_no_end(name: str, text: str, begun: bool) -> None:
    tokenizer = TOKENIZERS[name]()
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = encode(tokenizer, "<s>" + text if begun and name in BEGINS else text)
    assert ids == ([0, *body] if name in BEGINS and body[:1] != [0] else body)


@pytest.mark.parametrize("name", CLOSING)
@given(chat=CHATS, no_thinking=st.booleans())
def test_a_chat_is_what_its_template_makes_of_it(name: str, chat: list[dict[str, str]], no_thinking: bool) -> None:
    tokenizer = TOKENIZERS[name]()
    options = {"enable_thinking": False} if no_thinking else {}
    if name == "gemma" and any(message["role"] == "system" for message in chat):
        with pytest.raises(UsageError, match=r"refuses messages of the roles .*: System role not supported"):
            encode(tokenizer, chat, options)
        return
    opened = chat[-1]["role"] == "assistant"
    how = {"continue_final_message": True} if opened else {"add_generation_prompt": True}
    reference = tokenizer.apply_chat_template(chat, **how, **options, return_dict=False)
    ids = encode(tokenizer, chat, options)
    assert ids == reference
    begins = [0] if name in BEGINS else []
    assert ids[: len(begins) + 1] == [*begins, *tokenizer.encode(OPENING[name], add_special_tokens=False)]
    text = tokenizer.decode(ids)
    if opened:
        assert text.endswith(chat[-1]["content"].rstrip() if name in BEGINS else chat[-1]["content"])
    elif name == "thinking":
        assert text.endswith("<think>\n\n</think>\n\n" if no_thinking else "assistant\n")


def test_a_prefill_of_nothing_opens_the_answer() -> None:
    tokenizer = TOKENIZERS["chatml"]()
    user = {"role": "user", "content": "2+2?"}
    assert encode(tokenizer, [user, {"role": "assistant", "content": ""}]) == encode(tokenizer, [user])


@pytest.mark.parametrize("named", [None, 1, [1, 5], 5, [5, 6]])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answer_ends_at_every_token_that_the_files_name(name: str, named: Any) -> None:
    tokenizer = TOKENIZERS[name]()
    ends = set(end_ids(GenerationConfig(eos_token_id=named), tokenizer))
    closing = {tokenizer.convert_tokens_to_ids(CLOSING[name])} if name in CLOSING else set()
    assert ends == {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None} | closing


def test_a_template_that_does_not_close_with_a_special_token_names_none(tokenizer: PreTrainedTokenizerFast) -> None:
    assert end_ids(GenerationConfig(eos_token_id=7), tokenizer) == [7, tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("kind", "changes", "context"),
    [
        ("llama", {"max_position_embeddings": 77}, 77),
        ("gpt2", {"n_positions": 78}, 78),
        ("mpt", {"max_seq_len": 79}, 79),
        ("opt", {"max_position_embeddings": 80}, 80),
        ("gemma3", {"text_config": {"max_position_embeddings": 81}}, 81),
        ("bloom", {}, None),
        ("mamba", {}, None),
    ],
)
def test_the_context_by_its_many_names(kind: str, changes: dict[str, Any], context: int | None) -> None:
    assert context_of(AutoConfig.for_model(kind, **changes)) == context


@given(prompt=TEXTS, context=st.none() | st.integers(1, 60), new=st.integers(1, 40))
def test_what_passes_fits_the_model(prompt: str, context: int | None, new: int) -> None:
    check = PromptCheck(TOKENIZERS["chatml"](), {}, vocabulary=200, context=context, new_tokens=new)
    ids = encode(check.tokenizer, prompt)
    fits = len(ids) > 0 and max(ids) < 200 and (context is None or len(ids) + new <= context)
    try:
        check.copy()(prompt)
    except UsageError as error:
        assert not fits
        assert "\n" not in str(error)
    else:
        assert fits


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        ("chatml", "", "is empty, and a model cannot begin with nothing"),
        ("chatml", "x" * 95, "has 95 tokens, and with sampling.max_new_tokens=8 more than the model's context of 100"),
        ("base", [{"role": "user", "content": "x"}], "the model's tokenizer has no chat template"),
        ("gemma", [{"role": "system", "content": "x"}], "refuses messages of the roles system: System role not"),
        (
            "drops",
            [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
            "leaves the system message out",
        ),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_named(name: str, prompt: Prompt, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        PromptCheck((TOKENIZERS | OTHERS)[name](), {}, vocabulary=300, context=100, new_tokens=8)(prompt)
    assert expected in str(error.value)


@given(trained=st.integers(1, 90), held_out=st.none() | st.integers(1, 90))
def test_the_longest_answer_is_what_a_prompt_needs_room_for(trained: int, held_out: int | None) -> None:
    recipe = Recipe.model_validate(
        {
            "model": "m",
            "rewards": [{"fn": "a:b"}],
            "sampling": {"max_new_tokens": trained},
            "evaluation": {"max_new_tokens": held_out},
        }
    )
    config = AutoConfig.for_model("llama", vocab_size=200, max_position_embeddings=100)
    check, longest = PromptCheck.of(recipe, config, TOKENIZERS["chatml"]()), max(trained, held_out or 0)
    length = 100 - longest
    check("x" * length)
    key = "sampling" if longest == trained else "evaluation"
    with pytest.raises(UsageError, match=f"with {key}.max_new_tokens={longest} more than the model's context of 100"):
        check("x" * (length + 1))


def test_an_argument_that_no_template_reads_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"data\.chat_template\.enable_thinkin: the model's chat template reads no such"
    ):
        PromptCheck(TOKENIZERS["thinking"](), {"enable_thinkin": False}, vocabulary=300, context=None, new_tokens=8)
    PromptCheck(TOKENIZERS["thinking"](), {"enable_thinking": False}, vocabulary=300, context=None, new_tokens=8)


def test_a_tokenizer_of_another_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the model knows 100: its tokenizer belongs to another model"):
        PromptCheck(TOKENIZERS["chatml"](), {}, vocabulary=100, context=None, new_tokens=8)("é")
