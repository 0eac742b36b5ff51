"""RAdam and the three controls that its paper compares with it (Liu et al. 2020).

All four add eps to sqrt(v) before the bias correction, as the paper's psi (Eq. 1) and the authors'
code do: theta -= lr * m_hat * sqrt(1 - beta2^t) / (sqrt(v) + eps). torch.optim.Adam adds eps after
it; its eps of 1e-4 is therefore weaker, 32 times at t = 1 and 3 times at t = 105 with beta2 =
0.999.
"""

import math
from typing import Any, Literal, Unpack

from torch.optim.optimizer import ParamsT

from .base import MomentOptimizer, Shared
from .rectification import rectification
from .updates import Phase, Update


class RAdam(MomentOptimizer):
    """Adam whose step is damped by r_t while its second moment rests on few gradients.

    With m_hat = m / (1 - beta1^t), and rho_t and r_t as in `rectification`:

        rho_t > 5:   theta -= lr * r_t * m_hat * sqrt(1 - beta2^t) / (sqrt(v) + eps)
        otherwise:   theta -= lr * m_hat        (unrectified="sgd"), or nothing (unrectified="skip")

    Decoupled weight decay, theta *= 1 - lr * weight_decay, comes first; a skipped step does not
    decay either.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to sqrt(v), before the bias correction.
        weight_decay: decay of the parameters.
        decoupled_weight_decay: decay as in AdamW, as the paper does; False adds weight_decay *
            theta to the gradient.
        unrectified: what the first steps do, 5 of them for beta2 from 0.9 up. "sgd" is momentum SGD
            with the same lr (the paper's algorithm, and torch's). It is not scale-free: with a
            summed loss and a large lr these steps can diverge. "skip" only fills the moments (the
            authors' present default).
        maximize: go up the gradient.
        foreach: True for the list path, False for one tensor at a time, None to choose.
        fused: True for torch's fused kernel wherever it can run, False never, None to choose.

    Raises:
        ValueError: a setting outside its range.

    Differs from the paper's Algorithm 2, which rectifies from rho_t > 4 (t = 5): the authors' code
    and torch wait for 5 (t = 6), and so does this class, because at rho = 5 the approximation
    behind r_t is off by a factor of 3.3 in variance. With unrectified="sgd" it equals
    torch.optim.RAdam with the same decoupled_weight_decay to rounding.

    >>> import torch
    >>> x = torch.tensor([3.0, -2.0, 1.0], requires_grad=True)
    >>> optimizer = RAdam([x], lr=0.3)
    >>> for _ in range(300):
    ...     loss = x.square().sum()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    >>> x.abs().max().item() < 0.01
    True

    Reference: Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, ICLR 2020,
        Algorithm 2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = True,
        unrectified: Literal["sgd", "skip"] = "sgd",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            {"unrectified": unrectified},
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
        )

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError if a setting of `group` is outside its range."""
        super().check_group(group)
        if group["unrectified"] not in ("sgd", "skip"):
            raise ValueError(f'unrectified must be "sgd" or "skip", got {group["unrectified"]!r}')

    def update_at(self, t: int, group: dict[str, Any]) -> Update:
        """Return step t of Algorithm 2."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        r = rectification(t, beta2)
        if r is not None:
            return _adam_update(t, lr, beta1, beta2, r)
        if group["unrectified"] == "skip":
            return Update(Phase.MOMENTS)
        return Update(Phase.MOMENTUM, lr / (1.0 - beta1**t), lr)


class AdamWarmup(MomentOptimizer):
    """Adam with a linear warm-up of the learning rate: the heuristic that RAdam sets out to
    explain.

        lr_t = 1e-8 + lr * t / warmup_steps while t < warmup_steps, then lr
        theta -= lr_t * m_hat * sqrt(1 - beta2^t) / (sqrt(v) + eps)

    Decoupled weight decay is warmed up too, theta *= 1 - lr_t * weight_decay. t is each parameter's
    own step count; a schedule of lr multiplies on top. warmup_steps=0 is plain AdamW with the
    paper's place of eps.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate after the warm-up.
        betas: decay of the first and of the second moment.
        eps: added to sqrt(v), before the bias correction.
        weight_decay: decay of the parameters.
        warmup_steps: length of the warm-up; 4000 in the paper's translation runs, 100 to 1000 on
            CIFAR-10.
        shared: decoupled_weight_decay, maximize, foreach, fused, as in `RAdam`.

    Raises:
        ValueError: a setting outside its range.

    Reference: Liu et al. 2020, section 5.3. The offset 1e-8 is that of AdamW in the authors'
        radam.py.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        warmup_steps: int,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, {"warmup_steps": warmup_steps}, **shared
        )

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError if a setting of `group` is outside its range."""
        super().check_group(group)
        _check_count(group, "warmup_steps")

    def update_at(self, t: int, group: dict[str, Any]) -> Update:
        """Return Adam's step t at the warmed-up learning rate."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        if t < group["warmup_steps"]:
            lr = 1e-8 + lr * t / group["warmup_steps"]
        return _adam_update(t, lr, beta1, beta2)


class Adam2k(MomentOptimizer):
    """Adam that spends its first steps on the second moment alone: the paper's Adam-2k.

    For t <= freeze_steps only v advances; theta, m and weight decay stand still. Afterwards it is
    Adam, with both bias corrections at the global t as in the authors' code. m starts from zero at
    that point while 1 - beta1^t is already 1, so the first real step is (1 - beta1) g /
    sqrt(v_hat), a tenth of Adam's with beta1 = 0.9; m needs about 1/(1 - beta1) steps to fill.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to sqrt(v), before the bias correction.
        weight_decay: decay of the parameters.
        freeze_steps: number of steps without an update; 2000 in the paper.
        shared: decoupled_weight_decay, maximize, foreach, fused, as in `RAdam`.

    Raises:
        ValueError: a setting outside its range.

    Reference: Liu et al. 2020, section 3.1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        freeze_steps: int = 2000,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, {"freeze_steps": freeze_steps}, **shared
        )

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError if a setting of `group` is outside its range."""
        super().check_group(group)
        _check_count(group, "freeze_steps")

    def update_at(self, t: int, group: dict[str, Any]) -> Update:
        """Return Adam's step t, or the advance of v alone."""
        if t <= group["freeze_steps"]:
            return Update(Phase.SECOND_MOMENT)
        return _adam_update(t, float(group["lr"]), *group["betas"])


class AdamEps(MomentOptimizer):
    """Adam with a large eps in the paper's place: the paper's Adam-eps.

        theta -= lr * m_hat * sqrt(1 - beta2^t) / (sqrt(v) + eps)

    eps acts on the uncorrected sqrt(v): in terms of torch.optim.Adam's eps it is eps / sqrt(1 -
    beta2^t).

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to sqrt(v); 1e-4 in the paper. Its size is relative to the gradients: compare it
            with sqrt(v).
        weight_decay: decay of the parameters.
        shared: decoupled_weight_decay, maximize, foreach, fused, as in `RAdam`.

    Raises:
        ValueError: a setting outside its range.

    Reference: Liu et al. 2020, section 3.1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, {}, **shared)

    def update_at(self, t: int, group: dict[str, Any]) -> Update:
        """Return Adam's step t."""
        return _adam_update(t, float(group["lr"]), *group["betas"])


def _adam_update(t: int, lr: float, beta1: float, beta2: float, r: float = 1.0) -> Update:
    rate = lr * r * math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
    return Update(Phase.ADAPTIVE, rate, lr)


def _check_count(group: dict[str, Any], name: str) -> None:
    count = group[name]
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"{name} must be a whole number >= 0, got {count!r}")
