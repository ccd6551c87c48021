"""Bare matrix products: the most that a machine can do at the shapes of a model.

Legend: M rows, O out, I in.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


class BareProducts:
    """Rows times each of some matrices, and nothing else.

    On a CPU every core takes a share of the rows through all products, with one thread, so that none waits for another;
    on a GPU one product of all rows follows the other.

    Args:
        weights: matrices [O, I], on one device.
        rows: M.
    """

    def __init__(self, weights: Sequence[Tensor], rows: int):
        self.device = weights[0].device
        self._cores = torch.get_num_threads() if self.device.type == "cpu" else 1
        shares = [len(share) for share in torch.arange(rows).tensor_split(self._cores)]
        self._shares = [
            [(w.new_empty(share, w.shape[1]).normal_(), w.detach().mT, w.new_empty(share, w.shape[0])) for w in weights]
            for share in shares
        ]

    def multiply(self, times: int) -> None:
        """All products, so many times; returns when they are done."""
        if self.device.type != "cpu":
            _multiply(self._shares[0], times)
            torch.cuda.synchronize()
            return
        with ThreadPoolExecutor(self._cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(lambda share: _multiply(share, times), self._shares))
        torch.set_num_threads(self._cores)  # else threads yet to come would begin with one


@torch.inference_mode()
def _multiply(products: list[tuple[Tensor, Tensor, Tensor]], times: int) -> None:
    for _ in range(times):
        for x_MI, weight_IO, out_MO in products:
            torch.mm(x_MI, weight_IO, out=out_MO)
