"""A run on the disk: the journal of its updates, and snapshots that shorten a replay."""

from eggroll_rl.runs.journal.journal import Entry, Header, Journal

__all__ = ["Entry", "Header", "Journal"]
