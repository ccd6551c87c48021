"""The World tokenizer against the ``rwkv`` package's own."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
from transformers import AutoTokenizer

from eggroll_rl.models.loading import load_tokenizer
from eggroll_rl.models.rwkv7 import RWKV7Config
from eggroll_rl.models.world import CHAT_TEMPLATE, END_OF_TEXT, VOCABULARY, RwkvTokenizer
from eggroll_rl.system.errors import UsageError

TEXTS = (
    "",
    "Hello, wörld!\n\n\tx = 3\r\n",
    "\n" * 70 + " " * 300 + "\n  \n",
    "日本語のテキスト、한국어, עברית, हिन्दी",
    "\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308\U0001f95a \U0001d518 \u2028\x85\x00\x7f\ufffd",
    "################################################################################" * 3,
    "def f(x):\n        return {x: [1, 2, 3][-1] ** 0.5}  # </answer>\n",
)
SPARE = range(65530, 65536)  # rows of the models that no token has
pieces = st.text() | st.sampled_from(TEXTS) | st.text(" \n\t-#=0123456789abc<>|/")
texts = st.lists(pieces, max_size=6).map("".join)
every_example = settings(max_examples=300, deadline=None)


@pytest.fixture(scope="module")
def reference() -> TRIE_TOKENIZER:
    return TRIE_TOKENIZER(str(files("rwkv") / VOCABULARY))


@pytest.fixture(scope="module")
def tokenizer() -> RwkvTokenizer:
    return RwkvTokenizer()


def test_every_token(tokenizer: RwkvTokenizer, reference: TRIE_TOKENIZER) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == 1 + len(reference.idx2token)
    ids = list(reference.idx2token)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert [token.encode("latin-1") for token in tokens] == list(reference.idx2token.values())
    assert tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.batch_decode([[index] for index in ids]) == [
        token.decode(errors="replace") for token in reference.idx2token.values()
    ]


@given(text=texts)
@every_example
def test_text_to_ids_and_back(tokenizer: RwkvTokenizer, reference: TRIE_TOKENIZER, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == reference.decode(ids) == text


@given(text=texts, data=st.data())
@every_example
def test_ids_that_cut_characters(
    tokenizer: RwkvTokenizer, reference: TRIE_TOKENIZER, text: str, data: st.DataObject
) -> None:
    """The reference gives up the whole text where a byte is wrong; here only that byte is replaced."""
    ids = reference.encode(text)
    start, end = data.draw(st.integers(0, len(ids))), data.draw(st.integers(0, len(ids)))
    ids = ids[start:end] + data.draw(st.lists(st.integers(1, 65529), max_size=3))
    assert tokenizer.decode(ids) == reference.decodeBytes(ids).decode(errors="replace")
    if reference.decode(ids) != "\ufffd":
        assert tokenizer.decode(ids) == reference.decode(ids)


def test_the_end_of_text_and_spare_ids(tokenizer: RwkvTokenizer) -> None:
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer(f"{END_OF_TEXT}User:")["input_ids"] == [0, *tokenizer("User:")["input_ids"]]
    assert tokenizer.decode([33155, 0, *SPARE], skip_special_tokens=True) == "Hello"
    assert tokenizer.decode([33155, 0]) == f"Hello{END_OF_TEXT}"
    tokenizer.padding_side = "left"
    batch = tokenizer(["a", "abc def"], padding=True)
    assert batch["input_ids"][0] == [0] * (len(batch["input_ids"][1]) - 1) + tokenizer("a")["input_ids"]
    assert batch["attention_mask"] == [[0] * (len(batch["input_ids"][1]) - 1) + [1], [1] * len(batch["input_ids"][1])]


def test_chats(tokenizer: RwkvTokenizer) -> None:
    chat = [
        {"role": "system", "content": " Be\r\n\r\n\nbrief. "},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?\n"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "System: Be\nbrief.\n\nUser: 1+1?\n\nAssistant: 2\n\nUser: 2+2?\n\nAssistant:"


def test_a_saved_tokenizer_loads_again(tokenizer: RwkvTokenizer, tmp_path: Path) -> None:
    RWKV7Config().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert str(files("rwkv")) not in (tmp_path / "tokenizer_config.json").read_text()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert Path(loaded.vocab_file) == tmp_path / VOCABULARY
    assert loaded.chat_template == CHAT_TEMPLATE
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert [loaded(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    loaded.save_pretrained(tmp_path)  # over itself
    assert load_tokenizer(str(tmp_path))("a")["input_ids"] == [98]


def test_the_folders_of_published_models_load_without_their_code(tmp_path: Path) -> None:
    RWKV7Config().save_pretrained(tmp_path)
    (tmp_path / VOCABULARY).write_bytes((files("rwkv") / VOCABULARY).read_bytes())
    (tmp_path / "hf_rwkv_tokenizer.py").write_text("raise AssertionError('remote code runs')")
    special = {"bos_token": END_OF_TEXT, "eos_token": "\n\n", "pad_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    settings = {
        "tokenizer_class": "RwkvTokenizer",
        "auto_map": {"AutoTokenizer": ["hf_rwkv_tokenizer.RwkvTokenizer", None]},
        "added_tokens_decoder": {"0": {"content": END_OF_TEXT, "special": True}},
        "chat_template": "theirs",
        **special,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("Hello\n\n\n")["input_ids"] == RwkvTokenizer()("Hello\n\n\n")["input_ids"]
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.chat_template) == (65530, 0, "theirs")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: [*lines, "300 open('{ran}', 'w').write('x') 1"],
        lambda lines: [*lines, "300 'ab' 3"],
        lambda lines: [*lines, "300 5 5"],
        lambda lines: [*lines, "no vocabulary"],
        lambda lines: [*lines, "300 'ab 2"],
        lambda lines: lines[:-1],
        lambda lines: [],
    ],
)
def test_other_vocabularies_are_refused_and_never_run(spoil: Callable[[list[str]], list[str]], tmp_path: Path) -> None:
    RWKV7Config().save_pretrained(tmp_path)
    RwkvTokenizer().save_pretrained(tmp_path)
    ran = tmp_path / "ran"
    lines = spoil([f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256)])
    (tmp_path / VOCABULARY).write_text("\n".join(lines).replace("{ran}", str(ran)))
    with pytest.raises(ValueError, match="is no RWKV vocabulary"):
        RwkvTokenizer(str(tmp_path / VOCABULARY))
    with pytest.raises(UsageError, match="has no tokenizer that loads"):
        load_tokenizer(str(tmp_path))
    assert not ran.exists()
