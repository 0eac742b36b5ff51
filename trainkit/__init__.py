"""Training techniques as plugins for timm models."""

__version__ = "0.1.0"
