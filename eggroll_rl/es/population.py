"""The members of a generation: their seeds, pairs and signs. No tensors, no randomness of its own."""

from dataclasses import dataclass, field

from eggroll_rl.config import PopulationConfig


@dataclass(frozen=True)
class Population:
    """The N members of one generation.

    Member i is the model with weights ``W + sign(i) * sigma * E(pair(i))``. With antithetic pairs, members 2k and 2k+1
    are the two signs of pair k; without, every member is a pair of its own. All of it follows from (seed, generation),
    so a population crosses a process boundary as a handful of numbers.

    Args:
        seed: the run's seed, the 64-bit key of every noise stream.
        generation: counted from 0.
        config: size N, rank r, antithetic, noise distribution and reuse.
        sigma: the scale of this generation's noise; 0: that of ``config``.
    """

    seed: int
    generation: int
    config: PopulationConfig = field(default_factory=PopulationConfig)
    sigma: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", self.sigma or self.config.sigma)

    @property
    def size(self) -> int:
        return self.config.size

    @property
    def pairs(self) -> int:
        """Number K of independent perturbations: N/2 with antithetic pairs, else N."""
        return self.size // 2 if self.config.antithetic else self.size

    @property
    def epoch(self) -> int:
        """Index of the noise draw: ``noise_reuse`` consecutive generations share one."""
        return self.generation // self.config.noise_reuse

    @property
    def scale(self) -> float:
        """sigma / sqrt(rank), the factor of every member's ``A B^T``."""
        return float(self.sigma / self.config.rank**0.5)

    def pair(self, member: int) -> int:
        return member // 2 if self.config.antithetic else member

    def sign(self, member: int) -> int:
        return -1 if self.config.antithetic and member % 2 else 1

    def pairs_of(self, members: range) -> range:
        """The pairs that consecutive members belong to."""
        return range(self.pair(members.start), self.pair(members.stop - 1) + 1) if members else range(0)

    def chunks(self, size: int, members: range | None = None) -> list[range]:
        """Members (None: all) in consecutive ranges of ``size``, or of one more where a pair would be split."""
        step = size + size % 2 if self.config.antithetic else size
        every = range(self.size) if members is None else members
        return [every[first : first + step] for first in range(0, len(every), step)]

    def pair_weights(self, weights_N: list[float] | tuple[float, ...]) -> list[float]:
        """``sum_i w_i s_i`` over the members of each pair: the K coefficients of the update."""
        if len(weights_N) != self.size:
            raise ValueError(f"{len(weights_N)} fitness weights for a population of {self.size}: one for each member")
        weights_K = [0.0] * self.pairs
        for member, weight in enumerate(weights_N):
            weights_K[self.pair(member)] += weight * self.sign(member)
        return weights_K
