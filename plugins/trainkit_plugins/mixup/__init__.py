"""Mixup and CutMix: training on mixtures of two images, by timm."""
