"""Between the authors' names and layouts (TensorFlow) and those of the plugin's modules."""

from __future__ import annotations

import torch


def encoder_weights(w, side):
    """Return the state of `InferenceNetwork` from the authors' weights, differentiably.

    Args:
        w: weights by the authors' names.
        side: height and width of the map that is flattened.
    """
    heads = {
        f"{part}_{latent}": f"{latent}.{name}"
        for latent in ("omega", "gamma", "z")
        for part, name in _PARTS
    }
    names = {
        name: name
        for name in ("conv1", "conv2", "dense1", "interact1", "dense2", "dense3", "interact2")
    } | heads
    state = {}
    for theirs, ours in names.items():
        kernel = w[f"encoder.{theirs}.kernel"]
        state[f"{ours}.weight"] = (
            channels_first(kernel, side) if theirs == "dense1" else turned(kernel)
        )
        state[f"{ours}.bias"] = w[f"encoder.{theirs}.bias"]
    return state


_PARTS = (("dense", "dense"), ("mu", "mu"), ("sigma", "rho"))


def turned(kernel):
    """[kh, kw, in, out] -> [out, in, kh, kw]; [in, out] -> [out, in]; a bias stays."""
    return (
        kernel.permute(3, 2, 0, 1)
        if kernel.ndim == 4
        else kernel.permute(*reversed(range(kernel.ndim)))
    )


def channels_first(matrix, side):
    """[H W C, out] -> [out, C H W]: the layer after a flattened map."""
    out = matrix.shape[1]
    return matrix.reshape(side, side, -1, out).permute(2, 0, 1, 3).reshape(-1, out).T


def images(x):
    """[N, H, W, C] -> [N, C, H, W]."""
    return torch.permute(x, (0, 3, 1, 2))


def backbone_weights(w, side):
    """Return the state of `Conv4` with a zero head, and alpha by the same names, from the authors'
    weights.

    Args:
        w: weights by the authors' names.
        side: height and width of the last map.
    """
    theta, alpha = {}, {}
    for layer in ("conv1", "conv2", "conv3", "conv4"):
        for part, name in (("w", "weight"), ("b", "bias")):
            theta[f"{layer}.{name}"] = turned(w[f"theta.{layer}_{part}"])
            alpha[f"{layer}.{name}"] = turned(w[f"alpha.{layer}_{part}"])
        theta[f"norm{layer[-1]}.bias"] = w[f"{layer}_bn.beta"]
    head = channels_first(w["alpha.dense_w"], side)  # [1, features]: the same for every class
    ways = 5
    theta["head.weight"] = torch.zeros(ways, head.shape[1], dtype=head.dtype)
    theta["head.bias"] = torch.zeros(ways, dtype=head.dtype)
    return theta, alpha | {"head.weight": head, "head.bias": w["alpha.dense_b"]}
