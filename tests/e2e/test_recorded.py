"""What short runs end with is what they ended with when they were recorded (``tests/recorded.py``)."""

import pytest
import recorded

KNOWN = recorded.known()
FIRST = 2  # generations after which rounding, which is each processor's own, has turned only a few answers


@pytest.mark.parametrize("name", recorded.SEQUENCES)
def test_a_run_ends_as_it_was_recorded(name: str) -> None:
    found = recorded.record(name)
    here = KNOWN.get(recorded.processor(), {})
    if name in here:
        assert found == here[name]
    alike(found, next(records[name] for records in KNOWN.values() if name in records))


def alike(found: recorded.Record, other: recorded.Record) -> None:
    """The same records in the same order, and nearly the same first rewards."""
    mine, theirs = found["metrics"], other["metrics"]
    assert [set(record) for record in mine] == [set(record) for record in theirs]
    for record, expected in zip(mine, theirs, strict=True):
        assert record["generation"] == expected["generation"]
        if "reward_mean" in record and record["generation"] < FIRST:
            assert record["reward_mean"] == pytest.approx(expected["reward_mean"], abs=0.05)
            assert record["tokens"] == pytest.approx(expected["tokens"], rel=0.05)
        if record["generation"] == 0 and "accuracy" in record:
            assert record["accuracy"] == pytest.approx(expected["accuracy"], abs=0.1)
