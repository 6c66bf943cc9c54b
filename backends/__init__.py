"""Backends: the stores of bytes under a volume."""
