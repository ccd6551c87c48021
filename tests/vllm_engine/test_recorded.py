"""What a short run in vLLM ends with is what it ended with when it was recorded (``tests/recorded.py``)."""

import recorded


def test_a_run_ends_as_it_was_recorded() -> None:
    recorded.compare("vllm")
