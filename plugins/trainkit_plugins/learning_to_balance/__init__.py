"""Learning to Balance: per-task class weights, step multipliers and modulated initial parameters
for MAML.
"""

from .balance import (
    balance,
    class_weights,
    inverse_frequency,
    modulate,
    multipliers,
    scale_steps,
    shots_of,
)
from .encoder import InferenceNetwork
from .layout import Layout, lay_out
from .posterior import DiagonalNormal, Latents, Posterior

__all__ = [
    "DiagonalNormal",
    "InferenceNetwork",
    "Latents",
    "Layout",
    "Posterior",
    "balance",
    "class_weights",
    "inverse_frequency",
    "lay_out",
    "modulate",
    "multipliers",
    "scale_steps",
    "shots_of",
]
