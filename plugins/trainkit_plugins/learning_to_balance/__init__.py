"""Learning to Balance: per-task class weights, step multipliers and modulated initial parameters for MAML."""

from .balance import class_weights, inverse_frequency, modulate, scale_steps
from .encoder import InferenceNetwork
from .posterior import DiagonalNormal, Latents, Posterior

__all__ = [
    "DiagonalNormal",
    "InferenceNetwork",
    "Latents",
    "Posterior",
    "class_weights",
    "inverse_frequency",
    "modulate",
    "scale_steps",
]
