"""Between the authors' names and layouts (TensorFlow) and those of the plugin's modules."""

from __future__ import annotations

import torch


def encoder_weights(w, side):
    """Return the state of `InferenceNetwork` from the authors' weights, differentiably.

    Args:
        w: weights by the authors' names.
        side: height and width of the map that is flattened.
    """
    heads = {f"{part}_{latent}": f"{latent}.{name}" for latent in ("omega", "gamma", "z") for part, name in _PARTS}
    names = {name: name for name in ("conv1", "conv2", "dense1", "interact1", "dense2", "dense3", "interact2")} | heads
    state = {}
    for theirs, ours in names.items():
        kernel = w[f"encoder.{theirs}.kernel"]
        state[f"{ours}.weight"] = channels_first(kernel, side) if theirs == "dense1" else turned(kernel)
        state[f"{ours}.bias"] = w[f"encoder.{theirs}.bias"]
    return state


_PARTS = (("dense", "dense"), ("mu", "mu"), ("sigma", "rho"))


def turned(kernel):
    """[kh, kw, in, out] -> [out, in, kh, kw]; [in, out] -> [out, in]."""
    return kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T


def channels_first(matrix, side):
    """[H W C, out] -> [out, C H W]: the layer after a flattened map."""
    out = matrix.shape[1]
    return matrix.reshape(side, side, -1, out).permute(2, 0, 1, 3).reshape(-1, out).T


def images(x):
    """[N, H, W, C] -> [N, C, H, W]."""
    return torch.permute(x, (0, 3, 1, 2))
