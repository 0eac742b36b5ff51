"""A ReLU network that starts as its best affine model: a local minimum (Goldblum et al. 2020,
section 2).

Lemma 1: a ReLU network with L layers, none narrower than s, equals any affine map A x + c of rank
at most s on a finite set of points: the first layer turns the inputs and shifts them until every
unit is positive on every point, the following layers hand them on, and the last layer holds the
rest of A and undoes the shift. Around such parameters the network is affine on these points, so if
no affine map has a lower loss, no step that is small enough lowers it (theorem 1).

The letters: A [k, d] and c [k] the affine map, X [n, d] the points, W_l and b_l the weights and
biases of layer l.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

Objective = Callable[[Tensor], Tensor]


class Affine(NamedTuple):
    """An affine map that minimises something.

    Attributes:
        weight: A, [k, d], float64.
        bias: c, [k], float64.
        loss: what is left of the objective.
        gradient_norm: joint L2 norm of its gradient at A and c; 0 at a minimum.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    gradient_norm: float


def fit_affine(
    objective: Objective, inputs: Tensor, outputs: int, *, iterations: int = 500
) -> Affine:
    """Minimise ``objective(inputs A^T + c)`` over A and c by L-BFGS in float64, from zero.

    Args:
        objective: a convex function of predictions [n, k] in float64, such as the mean
            cross-entropy to fixed classes.
        inputs: X, [n, d].
        outputs: k.
        iterations: at most so many; a minimum that is attained takes far fewer, and one at infinity
            (classes that a plane separates, under cross-entropy) leaves a gradient that is not
            small.
    """
    x, whiten, mean = _whitened(inputs.detach().double())
    a = torch.zeros(outputs, x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    c = torch.zeros(outputs, dtype=torch.float64, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [a, c],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=1e-9,
        tolerance_change=0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(torch.addmm(c, x, a.t()))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    weight = a.detach() @ whiten
    return _measured(objective, inputs.detach().double(), weight, c.detach() - weight @ mean)


def _whitened(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the points in uncorrelated coordinates of variance 1, how to get there, and their
    mean.

    The minimum is the same, and L-BFGS finds it in far fewer steps.
    """
    mean = x.mean(0)
    _, s, vh = torch.linalg.svd(x - mean, full_matrices=False)
    keep = s > s.max() * max(x.shape) * torch.finfo(torch.float64).eps
    whiten = vh[keep] * (len(x) ** 0.5 / s[keep])[:, None]
    return (x - mean) @ whiten.t(), whiten, mean


def _measured(objective: Objective, x: Tensor, weight: Tensor, bias: Tensor) -> Affine:
    with torch.enable_grad():
        a, c = weight.requires_grad_(), bias.requires_grad_()
        loss = objective(torch.addmm(c, x, a.t()))
        gradients = torch.autograd.grad(loss, (a, c))
    return Affine(a.detach(), c.detach(), loss.item(), _norm(gradients))


@torch.no_grad()
def embed_affine(
    layers: Sequence[nn.Linear], weight: Tensor, bias: Tensor, inputs: Tensor, margin: float = 1.0
) -> None:
    """Set the parameters of a ReLU network so that it is ``inputs A^T + c`` on ``inputs``, as Lemma
    1 has it.

    With A = U S V^T of rank r, the first layer's first r units are S^(1/2) V^T x plus a shift, the
    last layer is U S^(1/2) on them, and what lies between hands them on. All other units are the
    constant ``margin`` and are not looked at. Every unit before a ReLU is at least ``margin`` on
    each of ``inputs``.

    Args:
        layers: the linear layers in order, with biases, at least two; a ReLU comes between any two
            of them.
        weight: A, [k, d].
        bias: c, [k].
        inputs: X, [n, d].
        margin: distance to the nearest kink, positive, in units of the hidden layers.

    Raises:
        ValueError: the layers do not fit one another or the map, a layer is narrower than the rank
            of A, or ``margin`` is not positive.
    """
    a, c, x = weight.double(), bias.double(), inputs.double()
    _check(layers, a, margin)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    rank = int((s > s.max() * max(a.shape) * torch.finfo(torch.float64).eps).sum())
    narrowest = min(layer.out_features for layer in layers[:-1])
    if narrowest < rank:
        raise ValueError(
            f"a layer of {narrowest} units is narrower than the rank of the affine map, {rank}"
        )
    root = s[:rank].sqrt()
    into, out = root[:, None] * vh[:rank], u[:, :rank] * root
    shift = margin - (x @ into.t()).amin(0)
    first, *middle, last = layers
    _write(first, into, shift, margin)
    for layer in middle:
        _write(layer, torch.eye(rank, device=a.device), torch.zeros_like(shift), margin)
    _write(last, out, c - out @ shift, margin)


def gradient_norm(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> float:
    """Return the joint L2 norm of the gradient of ``loss()``; no ``.grad`` is touched."""
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), parameters)
    return _norm(gradients)


def largest_curvature(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], *, iterations: int = 50
) -> float:
    """Return the Hessian's eigenvalue of largest size at the parameters, by power iteration.

    Near a minimum, gradient descent is stable at learning rates below 2 / eigenvalue, and with
    momentum m below 2 (1 + m) / eigenvalue.

    Args:
        loss: computes a scalar from the parameters, twice differentiable there.
        parameters: tensors that require grad.
        iterations: products of the Hessian with a vector.
    """
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
    value = 0.0
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
        for _ in range(iterations):
            size = _norm(v)
            v = [t / size for t in v]
            product = torch.autograd.grad(gradients, parameters, grad_outputs=v, retain_graph=True)
            value = float(sum((a * b).sum() for a, b in zip(v, product, strict=True)))
            v = list(product)
    return value


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.cat([t.detach().flatten() for t in tensors])))


def _write(layer: nn.Linear, weight: Tensor, bias: Tensor, rest: float) -> None:
    """Put a block into the upper left corner of a layer; units beyond it are constant."""
    layer.weight.zero_()
    layer.weight[: weight.shape[0], : weight.shape[1]] = weight.to(layer.weight)
    layer.bias.fill_(rest)
    layer.bias[: len(bias)] = bias.to(layer.bias)


def _check(layers: Sequence[nn.Linear], a: Tensor, margin: float) -> None:
    if not margin > 0:
        raise ValueError(
            f"margin must be positive, got {margin}: on the kink of a ReLU the network is not "
            "affine"
        )
    if len(layers) < 2:
        raise ValueError(f"the network needs a hidden layer; it has {len(layers)} linear layers")
    ends = [(layer.in_features, layer.out_features) for layer in layers]
    inner = all(left[1] == right[0] for left, right in pairwise(ends))
    if not inner or (ends[0][0], ends[-1][1]) != (a.shape[1], a.shape[0]):
        raise ValueError(
            f"layers of {ends} (in, out) cannot hold a map from {a.shape[1]} to {a.shape[0]} "
            "numbers"
        )
    if any(layer.bias is None for layer in layers):
        raise ValueError("every layer needs a bias, which keeps its units positive")
