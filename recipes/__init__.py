"""Published runs, one YAML file each, and the scripts that made the embedded models."""
