"""The initialisation of a ReLU network at a suboptimal local minimum."""

from .affine import Affine, embed_affine, fit_affine, gradient_norm, largest_curvature
from .network import Units, hidden_units, linear_layers

__all__ = [
    "Affine",
    "Units",
    "embed_affine",
    "fit_affine",
    "gradient_norm",
    "hidden_units",
    "largest_curvature",
    "linear_layers",
]
