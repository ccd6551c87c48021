"""Nothing of a run is lost: its journal, the snapshots beside it, and what goes on from them or rebuilds from them."""

from eggroll_rl.runs.journal.journal import Entry, Header, Journal

__all__ = ["Entry", "Header", "Journal"]
