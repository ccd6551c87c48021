"""Bytes as tokens."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from eggroll_rl.models.egg.arithmetic import DOCUMENT


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The bytes of UTF-8 as tokens, each its own id. Byte 0 begins a document, ends it, and pads on the left."""
    vocabulary = {name: byte for byte, name in bytes_to_unicode().items() if byte != DOCUMENT} | {"\0": DOCUMENT}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="\0 $A", special_tokens=[("\0", DOCUMENT)])
    document = AddedToken("\0", special=True, normalized=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=document,
        eos_token=document,
        pad_token=document,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
