"""Each causal architecture does what docs/architectures.md says of it. All of them take about a minute on one core."""

import re

import pytest
import transformers
from conformance.small import KINDS
from conformance.sweep import PAGE, Row, page, sweep
from transformers import PreTrainedTokenizerFast

TEXT = PAGE.read_text()
ROWS = {
    kind: Row(kind, share, verdict)
    for kind, share, verdict in re.findall(r"^\| (\S+) \| (.*?) \| (.*?) \|$", TEXT, re.M)
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in ROWS])
def test_an_architecture_does_what_the_table_says(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert sweep(kind, tokenizer) == ROWS[kind]


def test_the_table_has_every_architecture_of_the_release_that_it_names(tokenizer: PreTrainedTokenizerFast) -> None:
    assert ("transformers 5." in TEXT) == bool(ROWS)
    if f"transformers {transformers.__version__} " in TEXT:
        rows = [ROWS.get(kind) or sweep(kind, tokenizer) for kind in KINDS]
        assert page(rows) == TEXT
