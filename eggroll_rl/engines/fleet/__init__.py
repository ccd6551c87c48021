"""One engine made of many: Ray actors, or the processes of a launcher."""
