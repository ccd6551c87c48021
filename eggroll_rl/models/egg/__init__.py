"""EGG: an integer language model (arXiv 2511.16652, v2 appendix G)."""
