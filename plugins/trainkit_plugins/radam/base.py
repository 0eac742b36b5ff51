"""The optimizer that every method of this room is: Adam's two moments, moved by a rule per step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypedDict, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import Optimizer, ParamsT

from .updates import Hyper, Phase, Tensors, Update, foreach_step, fused_step, single_step

# Devices whose fused Adam kernel is picked without being asked for.
_FUSED_BY_DEFAULT = ("cpu", "cuda")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Shared(TypedDict, total=False):
    """The settings that every optimizer of the room takes by name; see `MomentOptimizer`."""

    decoupled_weight_decay: bool
    maximize: bool
    foreach: bool | None
    fused: bool | None


class _Bucket(NamedTuple):
    tensors: Tensors
    update: Update
    hyper: Hyper
    apply: Callable[[Tensors, Update, Hyper], None]


class MomentOptimizer(Optimizer, ABC):
    """Base of the optimizers of this room. Subclasses say what step t does (`update_at`); this class does it.

    The state of a parameter is `step` (a Python int: its own count, so that a parameter whose first
    gradient comes late starts its own warm-up), `exp_avg` (m) and `exp_avg_sq` (v), under torch's names, so
    that state dicts of torch.optim.Adam, AdamW and RAdam load here. Step counts live on the host: no step
    waits for the device. Two consequences: a step cannot be captured in a CUDA graph (refused), and
    torch.amp.GradScaler unscales in its ordinary way rather than inside the kernel.

    Each parameter takes the first of three paths that its group allows; they agree to rounding:

    - fused, torch's one-pass Adam kernel: real floating parameters on CPU or CUDA, when theta moves by
      m/(sqrt(v) + eps). A gradient whose memory layout differs from its parameter's is copied into it first;
    - foreach, torch's list operations: everything else on accelerators;
    - one tensor at a time: everything else on the CPU, where it is faster than lists and needs less memory.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to sqrt(v), before the bias correction.
        weight_decay: decay of the parameters.
        method: the subclass's own settings; a parameter group may override them like the others.
        decoupled_weight_decay: decay as in AdamW; False adds weight_decay * theta to the gradient.
        maximize: go up the gradient.
        foreach: True for the list path, False for one tensor at a time, None to choose.
        fused: True for torch's fused kernel wherever it can run, False never, None to choose.

    Raises:
        ValueError: a setting outside its range, also in a single group.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        method: dict[str, Any],
        *,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        shared = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, {**shared, **method})

    @abstractmethod
    def update_at(self, t: int, group: dict[str, Any]) -> Update:
        """Return what step t (from 1) does to the parameters of `group` that take their t-th step."""

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError if a setting of `group` is outside its range."""
        for name in ("lr", "eps", "weight_decay"):
            if not 0.0 <= float(group[name]) < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {group[name]!r}")
        betas = group["betas"]
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        if group["fused"] and group["foreach"]:
            raise ValueError("fused=True and foreach=True exclude each other: give at most one of them")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; settings that it lacks come from the defaults.

        Raises:
            ValueError: a setting outside its range.
        """
        self.check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore pickled or loaded state, also that of torch's own Adam family."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            for theta in group["params"]:
                if theta in self.state:
                    _adopt_state(theta, self.state[theta])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step for every parameter that has a gradient.

        Args:
            closure: re-evaluates the model with gradients enabled and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: a sparse gradient; no parameter has been changed then.
            RuntimeError: called while a CUDA graph is being captured.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._advance()
        return loss

    # Left out of torch.compile: the fused kernel is fast already, and t would be compiled in as a constant.
    # torch.compiler.disable does the same, but imports the whole compiler with this module.
    @_disable_dynamo
    @torch.no_grad()
    def _advance(self) -> None:
        for bucket in self._buckets():
            bucket.apply(bucket.tensors, bucket.update, bucket.hyper)

    def _buckets(self) -> list[_Bucket]:
        """Advance the step counts and sort the tensors into lists that take one and the same kernel call."""
        self._check_gradients()
        buckets: dict[Hashable, _Bucket] = {}
        for index, group in enumerate(self.param_groups):
            hyper = Hyper.of(group)
            updates: dict[int, Update] = {}
            for theta in group["params"]:
                if theta.grad is None:
                    continue
                state = self.state[theta] or _start_state(theta, self.state[theta])
                t = state["step"] = state["step"] + 1
                if t not in updates:
                    updates[t] = self.update_at(t, group)
                update = updates[t]
                tensors = _as_real(theta, theta.grad, state["exp_avg"], state["exp_avg_sq"])
                apply = _path(group, update, tensors)
                if apply is fused_step:
                    tensors = _with_matching_gradient(*tensors)
                key = (index, t, theta.device, theta.dtype, apply)
                if key not in buckets:
                    buckets[key] = _Bucket(Tensors([], [], [], []), update, hyper, apply)
                buckets[key].tensors.append(*tensors)
        return list(buckets.values())

    def _check_gradients(self) -> None:
        on_cuda = False
        for group in self.param_groups:
            for i, theta in enumerate(group["params"]):
                if theta.grad is None:
                    continue
                on_cuda = on_cuda or theta.is_cuda
                if theta.grad.layout is not torch.strided:
                    name = group["param_names"][i] if "param_names" in group else f"number {i}"
                    raise ValueError(
                        f"{type(self).__name__} takes dense gradients only; that of parameter {name}, shape "
                        f"{tuple(theta.shape)}, is {theta.grad.layout}: build the embedding with "
                        "sparse=False, or give this parameter to torch.optim.SparseAdam"
                    )
        if on_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{type(self).__name__}.step cannot be captured in a CUDA graph: the factors of each step "
                "are computed on the host and would be frozen; capture the forward and backward pass only"
            )


def _start_state(theta: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    state["step"] = 0
    for name in _MOMENTS:
        state[name] = torch.zeros_like(theta, memory_format=torch.preserve_format)
    return state


def _adopt_state(theta: Tensor, state: dict[str, Any]) -> None:
    """Turn a loaded step tensor into an int, and give the moments the parameter's memory layout."""
    if "step" in state:
        state["step"] = int(state["step"])
    for name in _MOMENTS:
        moment = state.get(name)
        if moment is not None and moment.stride() != theta.stride():
            state[name] = torch.empty_like(
                theta, dtype=moment.dtype, device=moment.device, requires_grad=False
            ).copy_(moment)


def _as_real(*tensors: Tensor) -> tuple[Tensor, ...]:
    """View complex tensors as real ones with a last dimension of 2: Adam treats the two parts apart."""
    if not tensors[0].is_complex():
        return tensors
    return tuple(torch.view_as_real(t.resolve_conj()) for t in tensors)


def _path(
    group: dict[str, Any], update: Update, tensors: tuple[Tensor, ...]
) -> Callable[[Tensors, Update, Hyper], None]:
    theta, grad, m, v = tensors
    fused = group["fused"]
    if fused is None:
        fused = group["foreach"] is None and theta.device.type in _FUSED_BY_DEFAULT
    # The moments are dense, so equal strides say that theta is dense too: what the kernels need.
    same_memory = theta.stride() == m.stride() == v.stride() and theta.dtype == grad.dtype == m.dtype
    if fused and same_memory and update.phase is Phase.ADAPTIVE and update.rate > 0.0:
        return fused_step
    foreach = group["foreach"]
    if foreach is None:
        # Lists save kernel launches; without launches, one tensor at a time stays in the cache.
        foreach = theta.device.type != "cpu"
    return foreach_step if foreach else single_step


def _with_matching_gradient(theta: Tensor, grad: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    if grad.stride() != theta.stride():
        grad = torch.empty_like(m).copy_(grad)
    return theta, grad, m, v
