"""Meta Dropout: noise whose size is meta-learned, on the support set of a few-shot task (Lee et
al., ICLR 2020).
"""

from .attach import attach
from .noise import Gate, LogitNoise, MetaDropout, gate

__all__ = ["Gate", "LogitNoise", "MetaDropout", "attach", "gate"]
