"""Learning to Balance in the paper's letters, one class, one image set and one layer at a time.

Everything is in the authors' layouts: images [N, H, W, C], kernels [kh, kw, in, out], matrices [in,
out], weights in one mapping by the authors' names.

ω̃, γ̃, z̃ latents · ω = softmax(ω̃) · γ = exp(γ̃) · α step sizes · θ initial parameters · N, M
support and query images
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

LAYERS = ("conv1", "conv2", "conv3", "conv4")


def conv(x, kernel, bias):
    return F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), bias, padding=1).permute(
        0, 2, 3, 1
    )


def pool(x):
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def flatten(x):
    return x.reshape(len(x), -1)


def statistics(x, cardinality):
    """[n, d] -> [d, 3]: mean, biased variance, cardinality."""
    n = len(x)
    mean = sum(x[i] for i in range(n)) / n
    var = sum((x[i] - mean) ** 2 for i in range(n)) / n
    return torch.stack([mean, var, torch.ones_like(mean) * cardinality], 1)


def posterior(w, x, y, ways, max_shot):
    """Return {latent: (mu, sigma)} from the weights `w` named encoder.…, support images and
    classes.
    """

    def dense(x, name):
        return x @ w[f"encoder.{name}.kernel"] + w[f"encoder.{name}.bias"]

    for name in ("conv1", "conv2"):
        x = pool(conv(x, w[f"encoder.{name}.kernel"], w[f"encoder.{name}.bias"]).relu())
    x = dense(flatten(x), "dense1")
    n = [(int((y == c).sum()) - 1) / (max_shot - 1) for c in range(ways)]
    s = torch.stack(
        [dense(statistics(x[y == c], n[c]), "interact1").relu().reshape(-1) for c in range(ways)]
    )
    v = dense(dense(s, "dense2").relu(), "dense3")
    v = dense(statistics(v, sum(n) / ways), "interact2").relu().reshape(-1)
    found = {}
    for name, given in (("omega", s), ("gamma", v), ("z", v)):
        h = dense(given, f"dense_{name}").relu()
        found[name] = (
            dense(h, f"mu_{name}").squeeze(-1),
            F.softplus(dense(h, f"sigma_{name}")).squeeze(-1),
        )
    return found


def kl(q):
    """KL from the standard normal, summed over latents and dimensions."""
    total = 0.0
    for mu, sigma in q.values():
        for m, s in zip(mu, sigma, strict=True):
            total = total - torch.log(s) + (s**2 + m**2) / 2 - 0.5
    return total


def logits(x, theta, beta, eps=1e-3):
    """The four-block network; batch statistics always, a learned shift and no scale."""
    for layer in LAYERS:
        x = conv(x, theta[f"{layer}_w"], theta[f"{layer}_b"])
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), unbiased=False)
        x = pool(((x - mean) / torch.sqrt(var + eps) + beta[layer]).relu())
    return flatten(x) @ theta["dense_w"] + theta["dense_b"]


def task(w, support, query, ways, max_shot, steps, latents=None):
    """Return (query loss, KL/(N+M), query probabilities, adapted θ) of one task.

    w: theta.…, alpha.…, encoder.…, conv*_bn.beta. latents: {omega, gamma, z} in place of the
        posterior means.
    """
    (x, y), (x_query, y_query) = support, query
    q = posterior(w, x, y, ways, max_shot)
    value = {name: mu for name, (mu, _) in q.items()} | (latents or {})
    omega, gamma = torch.softmax(value["omega"], 0), torch.exp(value["gamma"])
    theta, alpha = {}, {}
    at = 0
    channels = len(w["theta.conv1_b"])
    for i, layer in enumerate(LAYERS):
        z_w = value["z"][at : at + channels]
        z_b = value["z"][at + 4 * channels : at + 5 * channels]
        at += channels
        theta[f"{layer}_w"] = w[f"theta.{layer}_w"] * (1 + z_w)
        theta[f"{layer}_b"] = w[f"theta.{layer}_b"] + z_b
        for part in ("w", "b"):
            alpha[f"{layer}_{part}"] = gamma[i] * w[f"alpha.{layer}_{part}"]
    features = len(w["alpha.dense_w"])
    theta["dense_w"] = torch.zeros(features, ways, dtype=x.dtype, requires_grad=True)
    theta["dense_b"] = torch.zeros(ways, dtype=x.dtype, requires_grad=True)
    alpha["dense_w"] = gamma[4] * w["alpha.dense_w"]  # [features, 1]: the same for every class
    alpha["dense_b"] = gamma[4] * w["alpha.dense_b"]
    beta = {layer: w[f"{layer}_bn.beta"] for layer in LAYERS}
    for _ in range(steps):
        log_p = torch.log_softmax(logits(x, theta, beta), 1)
        per_class = [ways / len(y) * -log_p[y == c, c].sum() for c in range(ways)]
        loss = sum(omega[c] * per_class[c] for c in range(ways))
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {n: p - alpha[n] * g for (n, p), g in zip(theta.items(), gradients, strict=True)}
    log_p = torch.log_softmax(logits(x_query, theta, beta), 1)
    loss = -log_p[torch.arange(len(y_query)), y_query].mean()
    return loss, kl(q) / (len(y) + len(y_query)), log_p.exp(), theta
