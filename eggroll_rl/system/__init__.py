"""What any program needs of its machine: errors, durable files, C kernels, interrupts, the environment."""
