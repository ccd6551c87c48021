"""What a recipe will need, and how fast it will be."""
