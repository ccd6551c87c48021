"""A population as adapters in vLLM's slots."""
