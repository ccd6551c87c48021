"""The batched low-rank product, against each row times its own whole matrix."""

import pytest
import torch

from eggroll_rl.es.lowrank import _library, add_lowrank_, materialize

PAIRS, OUT, IN = 3, 5, 4


def reference(y, x, A, B, coefficient, pair):
    rows = [x[m] @ (coefficient[m] * A[pair[m]] @ B[pair[m]].T).T for m in range(len(x))]
    return y + torch.stack(rows)


@pytest.fixture(params=["kernel", "torch"])
def path(request, monkeypatch):
    """Both ways to compute the product; here the kernel must compile."""
    if request.param == "torch":
        monkeypatch.setattr("eggroll_rl.es.lowrank._library", lambda: None)
    else:
        assert _library() is not None


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("middle", [(), (6,), (2, 3)])
@pytest.mark.parametrize("ragged", [False, True])
def test_each_row_meets_its_own_matrix(rank, middle, ragged):
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(PAIRS, OUT, rank, generator=generator), torch.randn(PAIRS, IN, rank, generator=generator)
    pair = torch.tensor([2, 0, 2, 2, 1, 0, 1]) if ragged else torch.arange(PAIRS).repeat_interleave(4)
    M = len(pair)
    x, y = torch.randn(M, *middle, IN, generator=generator), torch.randn(M, *middle, OUT, generator=generator)
    coefficient = torch.randn(M, generator=generator)
    expected = reference(y, x, A, B, coefficient, pair)
    result = add_lowrank_(y, x, A, B, coefficient, pair if ragged else None)
    assert result is y
    torch.testing.assert_close(y, expected)


@pytest.mark.usefixtures("path")
def test_views_of_a_larger_buffer_and_transposed_inputs_work():
    buffer = torch.randn(PAIRS, OUT + IN + 9)
    A, B = buffer[:, 1 : 1 + OUT].unflatten(1, (OUT, 1)), buffer[:, 7 : 7 + IN].unflatten(1, (IN, 1))
    x, y, coefficient = torch.randn(IN, 2 * PAIRS).T, torch.zeros(2 * PAIRS, OUT), torch.randn(2 * PAIRS)
    expected = reference(y, x, A, B, coefficient, torch.arange(PAIRS).repeat_interleave(2))
    torch.testing.assert_close(add_lowrank_(y, x, A, B, coefficient), expected)


def test_rows_that_do_not_divide_into_pairs_are_refused():
    with pytest.raises(ValueError):
        add_lowrank_(
            torch.zeros(7, OUT),
            torch.zeros(7, IN),
            torch.zeros(PAIRS, OUT, 1),
            torch.zeros(PAIRS, IN, 1),
            torch.zeros(7),
        )


def test_a_row_is_the_same_to_the_bit_in_any_batch():
    A, B, x, y = torch.randn(PAIRS, OUT, 1), torch.randn(PAIRS, IN, 1), torch.randn(6, 2, IN), torch.randn(6, 2, OUT)
    coefficient, pair = torch.randn(6), torch.tensor([0, 0, 1, 1, 2, 2])
    together = add_lowrank_(y.clone(), x, A, B, coefficient)
    order = torch.tensor([3, 0, 5])
    apart = add_lowrank_(y[order].clone(), x[order], A, B, coefficient[order], pair[order])
    assert torch.equal(apart, together[order])


def test_materialize_is_the_matrix_that_the_product_uses():
    W, A, B = torch.randn(OUT, IN), torch.randn(1, OUT, 2), torch.randn(1, IN, 2)
    x = torch.randn(3, IN)
    whole = x @ materialize(W, A[0], B[0], -0.3).T
    torch.testing.assert_close(add_lowrank_(x @ W.T, x, A, B, torch.full((3,), -0.3)), whole)
