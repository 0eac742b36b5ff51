"""Learned step sizes for the inner loop."""

from .step_sizes import StepSizes

__all__ = ["StepSizes"]
