"""Timings and studies, one command each; `docs/numbers.md` has what they measured."""
