"""Rewards: call the user's functions in processes that may hang or crash, and score a generation by them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eggroll_rl.scoring.scorer import KINDS, RewardError, Scorer, Scores, TrainerState

__all__ = ["KINDS", "RewardError", "Scorer", "Scores", "TrainerState"]


def __getattr__(name: str) -> Any:
    """Import the scorer, and with it torch, on first use: the reward process needs neither."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from eggroll_rl.scoring import scorer

    return getattr(scorer, name)
