"""The noise of one parameter for K pairs, in three kinds with one interface; and whose rows a batch holds.

``Factors`` is low-rank noise in memory, ``Seeds`` the same noise made inside the kernels, ``Dense`` one number for each
element.

Legend: M rows (members x prompts, member-major), K pairs, E experts, O out, I in, r rank.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from eggroll_rl.es.lowrank import add_lowrank_, add_products_, by_pair, materialize

Distribution = Literal["normal", "rademacher"]


class Perturbation(Protocol):
    """Noise of one parameter for K pairs. It can be added to products, vectors and weights, and summed for a step."""

    def add_product_(self, y_M_O: Tensor, x_M_I: Tensor, members: "Members") -> None:
        """Add each row's ``sign * sigma * x E^T`` to the contiguous y, in place."""
        ...

    def add_vector_(self, y_M_O: Tensor, x_M_O: Tensor | None, members: "Members") -> None:
        """Add each row's ``sign * sigma * x * E`` to the contiguous y, in place; x None: ones. Dense noise alone."""
        ...

    @property
    def pairs(self) -> int:
        """K."""
        ...

    @property
    def mT(self) -> "Perturbation":
        """The noise of the transposed matrix."""
        ...

    def add_sum_(self, total: Tensor, weights_K: Tensor) -> None:
        """Add ``sum_k w_k E_k`` (low-rank: without its 1 / sqrt(r)) to the contiguous fp32 ``total``, in place."""
        ...

    def added_to(self, weight: Tensor, pair: int, amount: float, rank: int) -> Tensor:
        """``weight + amount * E`` of one pair."""
        ...

    def to(self, dtype: torch.dtype) -> "Perturbation":
        """The same noise in another dtype."""
        ...

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that hold the noise."""
        ...


class Members(NamedTuple):
    """Which member each row of a batch belongs to, and the noise of these members.

    Args:
        noise: of each evolved parameter by its name, for K pairs.
        coefficient_M: [M], sign * sigma / sqrt(r), of the activations' dtype.
        pair_M: [M] int64 into the K pairs; None: M / K consecutive rows for each pair, in order.
        dense_coefficient_M: [M], sign * sigma; needed where a dense parameter evolves.
    """

    noise: Mapping[str, Perturbation]
    coefficient_M: Tensor
    pair_M: Tensor | None = None
    dense_coefficient_M: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Members":
        """The same members with coefficients of another dtype; the noise keeps its own."""
        dense = self.dense_coefficient_M
        return self._replace(
            coefficient_M=self.coefficient_M.to(dtype), dense_coefficient_M=None if dense is None else dense.to(dtype)
        )

    def of_rows(self, index: Tensor) -> "Members":
        """The members of some rows, given by int64 indices; needs ``pair_M``."""
        assert self.pair_M is not None, "a choice of rows has not the same number for each pair"
        dense = self.dense_coefficient_M
        return Members(
            self.noise, self.coefficient_M[index], self.pair_M[index], None if dense is None else dense[index]
        )

    def pairs_of_rows(self, pairs: int) -> Tensor:
        """The pair of each row, int64 [M], of K ``pairs``."""
        if self.pair_M is not None:
            return self.pair_M
        rows = len(self.coefficient_M) // pairs
        return torch.arange(pairs, device=self.coefficient_M.device).repeat_interleave(rows)


class Factors(NamedTuple):
    """Low-rank noise as A [K, O, r] and B [K, I, r]; of a stack of experts [K, E, O, r] and [K, E, I, r]."""

    A_KOr: Tensor
    B_KIr: Tensor

    def add_product_(self, y_M_O: Tensor, x_M_I: Tensor, members: Members) -> None:
        add_lowrank_(y_M_O, x_M_I, self.A_KOr, self.B_KIr, members.coefficient_M, members.pair_M)

    def add_vector_(self, y_M_O: Tensor, x_M_O: Tensor | None, members: Members) -> None:
        raise TypeError("low-rank noise is a matrix's, and this is a vector")

    @property
    def pairs(self) -> int:
        return len(self.A_KOr)

    @property
    def mT(self) -> "Factors":
        return Factors(self.B_KIr, self.A_KOr)

    def of_experts(self) -> "Factors":
        """The noise of a stack as that of K * E matrices: expert e of pair k is number ``k * E + e``."""
        return Factors(self.A_KOr.flatten(0, 1), self.B_KIr.flatten(0, 1))

    def add_sum_(self, total: Tensor, weights_K: Tensor) -> None:
        if total.ndim == 3:
            for expert, expert_OI in enumerate(total):
                Factors(self.A_KOr[:, expert], self.B_KIr[:, expert]).add_sum_(expert_OI, weights_K)
            return
        A_LO = (self.A_KOr.mT * weights_K[:, None, None]).flatten(0, 1).contiguous()  # L = K * r rows
        add_products_(total, A_LO, self.B_KIr.mT.flatten(0, 1).contiguous())

    def added_to(self, weight: Tensor, pair: int, amount: float, rank: int) -> Tensor:
        return materialize(weight, self.A_KOr[pair], self.B_KIr[pair], amount / rank**0.5)

    def to(self, dtype: torch.dtype) -> "Factors":
        return Factors(self.A_KOr.to(dtype), self.B_KIr.to(dtype))

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self)


class Seeds(NamedTuple):
    """Low-rank noise that the kernels make in registers (``eggroll_rl.es.kernels``); only its seeds are in memory.

    Attributes:
        pairs: K.
        stream_A, stream_B: the third counter word of each factor's stream.
        where: seed, noise epoch and first pair, int64 [3] on the device.
    """

    pairs: int
    stream_A: int
    stream_B: int
    rank: int
    distribution: Distribution
    where: Tensor

    def add_product_(self, y_M_O: Tensor, x_M_I: Tensor, members: Members) -> None:
        from eggroll_rl.es.kernels.lowrank import add_regenerated_

        add_regenerated_(y_M_O, x_M_I, self, members.coefficient_M, members.pair_M)

    def add_vector_(self, y_M_O: Tensor, x_M_O: Tensor | None, members: Members) -> None:
        raise TypeError("low-rank noise is a matrix's, and this is a vector")

    @property
    def mT(self) -> "Seeds":
        return self._replace(stream_A=self.stream_B, stream_B=self.stream_A)

    def add_sum_(self, total: Tensor, weights_K: Tensor) -> None:
        raise TypeError("an update draws its noise")

    def added_to(self, weight: Tensor, pair: int, amount: float, rank: int) -> Tensor:
        raise TypeError("a whole member's noise is drawn")

    def to(self, dtype: torch.dtype) -> "Seeds":
        return self  # the kernels round to what y is

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.where,)


class Dense(NamedTuple):
    """One number for each element, [K, *shape]."""

    E_K: Tensor

    def add_product_(self, y_M_O: Tensor, x_M_I: Tensor, members: Members) -> None:
        E_KOI = self._of_rows(members)
        by_pair(y_M_O, len(E_KOI)).baddbmm_(by_pair(_scaled(x_M_I, members), len(E_KOI)), E_KOI.mT)

    def add_vector_(self, y_M_O: Tensor, x_M_O: Tensor | None, members: Members) -> None:
        E_KO = self._of_rows(members)
        x_M_O = _scaled(torch.ones_like(y_M_O[..., :1]) if x_M_O is None else x_M_O, members)
        by_pair(y_M_O, len(E_KO)).addcmul_(by_pair(x_M_O, len(E_KO)), E_KO[:, None])

    @property
    def pairs(self) -> int:
        return len(self.E_K)

    @property
    def mT(self) -> "Dense":
        return Dense(self.E_K.mT)

    def add_sum_(self, total: Tensor, weights_K: Tensor) -> None:
        add_products_(total.view(1, -1), weights_K[:, None], self.E_K.flatten(1).contiguous())

    def added_to(self, weight: Tensor, pair: int, amount: float, rank: int) -> Tensor:
        return weight + amount * self.E_K[pair]

    def to(self, dtype: torch.dtype) -> "Dense":
        return Dense(self.E_K.to(dtype))

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.E_K,)

    def _of_rows(self, members: Members) -> Tensor:
        return self.E_K if members.pair_M is None else self.E_K.index_select(0, members.pair_M)


def _scaled(x: Tensor, members: Members) -> Tensor:
    assert members.dense_coefficient_M is not None
    return (x * members.dense_coefficient_M.view(-1, *[1] * (x.ndim - 1))).contiguous()
