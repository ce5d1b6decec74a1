"""The runtime: what the kernel is told so that a process becomes a container."""
