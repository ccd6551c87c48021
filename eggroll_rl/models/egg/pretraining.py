"""A population of EGG models that learns to foretell text: what it reads decides who of each pair did better, and these
signs, two bits a pair, are all that an update needs.

Legend: N members, K pairs, S streams, T bytes foretold, D width, L layers.
"""

from collections.abc import Mapping

from torch import Tensor

from eggroll_rl.es.integers import MOST_PAIRS, pair_fitness, threshold
from eggroll_rl.models.egg.arithmetic import ONE, SHIFT
from eggroll_rl.models.egg.learner import EggLearner
from eggroll_rl.models.egg.model import EggForCausalLM
from eggroll_rl.system.errors import UsageError

STATES = "states"


class Pretraining:
    """N members of one model, each with a state of its own that it keeps from generation to generation.

    Args:
        model: learns in place.
        members: N, even.
        group: so many members, even, read the same stream.
        seed: of the noise.
        alpha: about how many weights move (``eggroll_rl.es.integers.threshold``).
        shift: sigma is 2 ** -shift.

    Raises:
        UsageError: the sizes do not fit, or there is no C compiler.
    """

    def __init__(
        self,
        model: EggForCausalLM,
        members: int,
        group: int = 2,
        seed: int = 0,
        alpha: float = 4.0,
        shift: int = SHIFT,
    ):
        check_population(members, group)
        self.model, self.members, self.group, self.alpha = model, members, group, alpha
        self.learner = EggLearner(model, seed, shift)
        self.state_NLD = model.new_state(members)

    @property
    def streams(self) -> int:
        """How many streams of text the population reads."""
        return self.members // self.group

    def fitness(self, byte_ST: Tensor, generation: int) -> Tensor:
        """Let all members read on, and say who of each pair foretold better: int8 [K] in {-1, 0, 1}.

        Args:
            byte_ST: uint8 [S, T + 1].
        """
        score_N = self.learner.read(byte_ST, self.state_NLD, range(self.members), self.group, generation)
        return pair_fitness(score_N.long())

    def learn(self, fitness_K: Tensor, generation: int) -> dict[str, int]:
        """Take a generation's step; of each parameter, how many weights moved."""
        return self.learner.learn(fitness_K, generation, threshold(generation, self.alpha))

    def bits_per_byte(self, byte_ST: Tensor) -> float:
        """Of the model itself on all bytes but the first of each stream, each from the state before a document."""
        streams, tokens = byte_ST.shape
        score_S = self.learner.read_unperturbed(byte_ST, self.model.new_state(streams))
        return -int(score_S.long().sum()) / (ONE * streams * (tokens - 1))

    def state_dict(self) -> dict[str, Tensor]:
        """The weights and all members' states."""
        return {**self.learner.state_dict(), STATES: self.state_NLD}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave."""
        self.learner.load_state_dict({name: tensor for name, tensor in state.items() if name != STATES})
        self.state_NLD.copy_(state[STATES])


def check_population(members: int, group: int) -> None:
    """Refuse a population that cannot be, before anything of it is made.

    Raises:
        UsageError: it is odd, too large, or does not divide into groups of whole pairs.
    """
    if members < 2 or members % 2 or members > 2 * MOST_PAIRS:
        raise UsageError(f"a population of {members}: choose an even number from 2 to {2 * MOST_PAIRS}")
    if group < 2 or group % 2 or members % group:
        raise UsageError(f"{members} members in groups of {group}: choose an even group that divides them")
