"""A run: built and checked, trained into its folder, judged, and scored again."""
