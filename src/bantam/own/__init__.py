"""Networks of one's own: a class in a file that was typed, as in model=mine.py:Net."""
