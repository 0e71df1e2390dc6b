"""Decoding on a CPU: one call of a C function per token."""
