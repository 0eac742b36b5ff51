"""Ending a run when validation no longer gets better."""
