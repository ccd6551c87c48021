"""The door that users of TRL know: the names of ``trl.GRPOTrainer``, and the runs of a recipe."""

from eggroll_rl.trainer.config import EggrollConfig
from eggroll_rl.trainer.trainer import EggrollTrainer

__all__ = ["EggrollConfig", "EggrollTrainer"]
