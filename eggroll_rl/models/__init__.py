"""Models that the toolkit brings along: RWKV-7 and the small embedded ones."""
