"""The techniques: one room each, usable with trainkit or without it."""
