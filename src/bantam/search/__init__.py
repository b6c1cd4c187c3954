"""A search with Optuna: its sweeper for Hydra, its space, its study, its workers and its outcome."""
