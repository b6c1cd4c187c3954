"""Blocks of a network as C functions, compiled for the processor that trains it."""
