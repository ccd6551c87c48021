"""Prompts and columns: datasets, files and generated problems."""
