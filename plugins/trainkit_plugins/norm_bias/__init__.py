"""Norm-bias: pull the norm of the parameters to a chosen value; with the other experiments of
its paper.
"""

from .norm import Push, norm_bias, push_to_norm, squared_norm

__all__ = ["Push", "norm_bias", "push_to_norm", "squared_norm"]
