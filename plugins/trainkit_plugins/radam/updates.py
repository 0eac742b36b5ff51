"""One Adam-like step on lists of tensors, by torch's fused kernel or by plain tensor operations.

Every optimizer of this room moves a parameter theta by the same two moments,

    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2,

and differs only in a few numbers per step (`Update`). Bias corrections, rectification and warm-up
are all folded into the one factor `Update.rate`, computed on the host in double precision.
"""

from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Phase(Enum):
    """What a step does to a parameter and its two moments."""

    ADAPTIVE = "theta moves by m / (sqrt(v) + eps)"
    MOMENTUM = "theta moves by m"
    MOMENTS = "theta stays; m and v advance"
    SECOND_MOMENT = "theta and m stay; v advances"


class Update(NamedTuple):
    """One step's numbers for every parameter that has taken the same number of steps.

    Attributes:
        phase: what moves.
        rate: theta moves by -rate times the phase's direction; all bias corrections are in here.
        lr: the learning rate that decoupled weight decay is multiplied with.
    """

    phase: Phase
    rate: float = 0.0
    lr: float = 0.0


class Hyper(NamedTuple):
    """The settings of a parameter group that do not change with the step."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    maximize: bool

    @classmethod
    def of(cls, group: dict[str, Any]) -> "Hyper":
        """Read the settings of an optimizer's parameter group."""
        beta1, beta2 = group["betas"]
        decoupled = group["decoupled_weight_decay"]
        return cls(beta1, beta2, group["eps"], group["weight_decay"], decoupled, group["maximize"])


class Tensors(NamedTuple):
    """Parallel lists: real parameters theta, gradients g, moments m and v, all of one device and
    dtype.
    """

    thetas: list[Tensor]
    grads: list[Tensor]
    ms: list[Tensor]
    vs: list[Tensor]

    def append(self, theta: Tensor, grad: Tensor, m: Tensor, v: Tensor) -> None:
        """Add one parameter with its gradient and moments."""
        self.thetas.append(theta)
        self.grads.append(grad)
        self.ms.append(m)
        self.vs.append(v)


# The kernel divides by 1 - beta1^t and sqrt(1 - beta2^t). A step count this large makes both
# exactly 1, which leaves theta -= rate * m / (sqrt(v) + eps): the rest is in `rate`, in double
# precision, also where the kernel uses float32.
_NO_BIAS_CORRECTION = 1e30


def fused_step(tensors: Tensors, update: Update, hyper: Hyper) -> None:
    """Take an ADAPTIVE step in one pass over memory with torch's fused Adam kernel.

    Args:
        tensors: equal strides within each parameter, as the kernels pair memory, not indices.
        update: phase ADAPTIVE, rate above 0.
        hyper: the group's settings.
    """
    kernel = torch._fused_adamw_ if hyper.decoupled else torch._fused_adam_
    weight_decay = hyper.weight_decay
    if hyper.decoupled:
        # The kernel multiplies the decay by its own learning rate, which here is `rate`.
        weight_decay *= update.lr / update.rate
    step = torch.full((), _NO_BIAS_CORRECTION, dtype=torch.float32, device=tensors.thetas[0].device)
    kernel(
        tensors.thetas,
        tensors.grads,
        tensors.ms,
        tensors.vs,
        [],
        [step] * len(tensors.thetas),
        lr=update.rate,
        beta1=hyper.beta1,
        beta2=hyper.beta2,
        weight_decay=weight_decay,
        eps=hyper.eps,
        amsgrad=False,
        maximize=hyper.maximize,
    )


def foreach_step(tensors: Tensors, update: Update, hyper: Hyper) -> None:
    """Take a step of any phase with torch's list operations, any layout.

    Half-precision tensors are computed in float32 and rounded once at the end, as in the fused
    kernel. Temporary memory: the size of the parameters in `tensors`, twice that when gradients
    have to be changed first.
    """
    work = _work_dtype(tensors.thetas[0].dtype)
    thetas, grads, ms, vs = ([t.to(work) for t in some] for some in tensors)
    decay = hyper.weight_decay
    if hyper.maximize:
        grads = list(torch._foreach_neg(grads))
    if decay != 0.0 and not hyper.decoupled:
        grads = list(torch._foreach_add(grads, thetas, alpha=decay))
    if update.phase is not Phase.SECOND_MOMENT:
        torch._foreach_lerp_(ms, grads, 1.0 - hyper.beta1)
    torch._foreach_mul_(vs, hyper.beta2)
    torch._foreach_addcmul_(vs, grads, grads, 1.0 - hyper.beta2)
    if update.phase in (Phase.ADAPTIVE, Phase.MOMENTUM):
        if decay != 0.0 and hyper.decoupled:
            torch._foreach_mul_(thetas, 1.0 - update.lr * decay)
        if update.phase is Phase.ADAPTIVE:
            _move_adaptively(thetas, ms, vs, update.rate, hyper.eps)
        else:
            torch._foreach_add_(thetas, ms, alpha=-update.rate)
    for stored, computed in ((tensors.thetas, thetas), (tensors.ms, ms), (tensors.vs, vs)):
        _copy_back(stored, computed)


def single_step(tensors: Tensors, update: Update, hyper: Hyper) -> None:
    """Take a step of any phase one tensor at a time: temporary memory is that of the largest
    parameter.
    """
    for theta, grad, m, v in zip(*tensors, strict=True):
        foreach_step(Tensors([theta], [grad], [m], [v]), update, hyper)


def _move_adaptively(
    thetas: list[Tensor], ms: list[Tensor], vs: list[Tensor], rate: float, eps: float
) -> None:
    denominators = torch._foreach_sqrt(vs)
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(thetas, ms, denominators, -rate)


def _copy_back(stored: list[Tensor], computed: list[Tensor]) -> None:
    # `.to` hands back the tensor itself where it is of the working dtype already.
    pairs = [(s, c) for s, c in zip(stored, computed, strict=True) if s is not c]
    if pairs:
        torch._foreach_copy_([s for s, _ in pairs], [c for _, c in pairs])


def _work_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= torch.float32.itemsize else torch.float32
