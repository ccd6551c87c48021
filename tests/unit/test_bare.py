"""Bare products: each row meets each matrix, and the threads are what they were."""

from collections.abc import Iterator

import pytest
import torch

from eggroll_rl.planning.bare import BareProducts


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_all_rows_are_multiplied_and_threads_stay(threads: int) -> None:
    weights = [torch.randn(3, 5), torch.randn(7, 4)]
    products = BareProducts(weights, rows=9)
    products.multiply(2)
    assert torch.get_num_threads() == threads
    assert [sum(len(share[index][0]) for share in products._shares) for index in range(2)] == [9, 9]
    for share in products._shares:
        for (x, _, out), weight in zip(share, weights, strict=True):
            torch.testing.assert_close(out, x @ weight.mT)
