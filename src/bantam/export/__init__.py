"""A finished network as files that other programs run."""
