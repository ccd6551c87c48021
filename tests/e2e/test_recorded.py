"""What short runs end with is what they ended with when they were recorded (``tests/recorded.py``)."""

import pytest
import recorded


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "two replicas")) for name in recorded.SEQUENCES]
)
def test_a_run_ends_as_it_was_recorded(name: str) -> None:
    recorded.compare(name)
