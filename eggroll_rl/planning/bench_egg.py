"""How much text a population of integer models learns from in a second, and which share of the processor's int8
products its reading reaches: ``eggroll-rl bench --model egg``.

Bare products are int8 multiplications of numbers that the caches hold, by the same instructions on the same threads:
what the processor can at most. Every figure is a median over interleaved repeats.

Legend: N members, K pairs, S streams, T bytes of an update.
"""

import platform
from typing import Any

import torch

from eggroll_rl.es.integers import least_votes
from eggroll_rl.models.egg.arithmetic import BYTES, SHIFT
from eggroll_rl.models.egg.kernel import Draw, EggKernel, Products, bare_products
from eggroll_rl.models.egg.model import EggConfig, new_model
from eggroll_rl.planning.interleaved import interleaved, peak_memory
from eggroll_rl.system.errors import UsageError

PRESETS = {"egg": (256, 6, 64), "egg-64x2": (64, 2, 256)}  # width, layers and members
GROUP = 2
_BARE = 2**31  # multiplications that are timed at once, about


class EggBench:
    """One population of a new model, and text that means nothing.

    Args:
        members: N, even.
        tokens: T.
        products: None: the fastest of this processor.
    """

    def __init__(self, width: int, layers: int, members: int, tokens: int, products: Products | None = None):
        self.members, self.tokens = members, tokens
        model = new_model(EggConfig(width, layers), 0)
        self.kernel = EggKernel(dict(model.named_parameters()), width, layers, products)
        self.products_of_a_byte = BYTES * width + 12 * layers * width**2
        self.text_ST = torch.randint(1, BYTES, (members // GROUP, tokens + 1)).to(torch.uint8)
        self.state_NLD, self.fitness_K = model.new_state(members), torch.ones(members // 2, dtype=torch.int8)
        self.draw = Draw(seed=0, epoch=0, shift=SHIFT)
        self.votes = self.kernel.vote(self.fitness_K, self.draw)
        self._times = max(1, _BARE // bare_products(1, BYTES, self.kernel.products))

    def read(self) -> int:
        """All members read; returns the bytes."""
        self.kernel.read(self.text_ST, self.state_NLD, range(self.members), GROUP, self.draw)
        return self.members * self.tokens

    def draw_noise(self) -> int:
        """The noise of all pairs, as reading and counting votes draw it each."""
        self.kernel.noise(self.draw, range(self.members // 2))
        return 1

    def update(self) -> int:
        votes = self.kernel.vote(self.fitness_K, self.draw)
        self.kernel.move(votes, least_votes(16 * 16, self.members // 2))  # none: the model stays what it is
        return 1

    def bare(self) -> int:
        """Bare products; returns how many."""
        return bare_products(self._times, BYTES, self.kernel.products)


def measure_egg(
    name: str, members: int | None, rows: int | None, tokens: int, repeats: int | None, products: Products | None = None
) -> dict[str, Any]:
    """As ``eggroll_rl.planning.bench.measure``, of a preset.

    Raises:
        UsageError: rows, of which every member has one; an odd population.
    """
    width, layers, usual = PRESETS[name]
    members = members or usual
    if rows not in (None, 1):
        raise UsageError(f"--rows {rows}: each member of {name} reads one stream; leave --rows out")
    if members % 2:
        raise UsageError(f"--members {members}: the members of {name} come in pairs; give an even number")
    before = peak_memory()
    subject = EggBench(width, layers, members, tokens, products)
    steps = {"read": subject.read, "noise": subject.draw_noise, "update": subject.update, "bare": subject.bare}
    timed = interleaved(steps, repeats, warm_ups=1)
    median = {step: timed.median(step) for step in steps}
    whole, a_byte = median["read"] + median["update"], subject.products_of_a_byte
    return {
        "model": name,
        "products": subject.kernel.products,
        "members": members,
        "rows_per_member": 1,
        "tokens": tokens,
        "tokens_per_second": {
            "population": timed.made["read"] / whole,
            "reading alone": timed.speed("read"),
            "bare int8 products": timed.speed("bare") / a_byte,
        },
        "ratios": {"reading / bare int8 products": timed.ratio("read", "bare") * a_byte},
        "shares": {
            "update, of a generation": median["update"] / whole,
            "noise (drawn by reading and by the update), of a generation": 2 * median["noise"] / whole,
        },
        "seconds": median,
        "peak_memory": {"before": before, "population": peak_memory()},
        "environment": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.processor(),
        },
    }
