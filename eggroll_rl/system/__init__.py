"""Independent of the rest: errors, durable files, C kernels, interrupts, paths, the hub, the environment."""
