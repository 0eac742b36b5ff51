"""Spectral projections of layers and their effective rank."""

from .operators import Geometry, Projected, Spectrum, effective_rank, geometry, project, spectrum
from .sizes import input_sizes

__all__ = [
    "Geometry",
    "Projected",
    "Spectrum",
    "effective_rank",
    "geometry",
    "input_sizes",
    "project",
    "spectrum",
]
