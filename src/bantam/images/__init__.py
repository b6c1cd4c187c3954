"""Reads images from files, and says what is wrong with these: downloads, arrays and folders of pictures."""
