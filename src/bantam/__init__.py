"""Bantam: experiments and sweeps for neural networks in a weight class."""
