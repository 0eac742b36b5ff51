"""Data: what a recipe may name, how it is read, and the order in which it is seen."""
