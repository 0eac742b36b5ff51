"""The optimizer that every method of this room is: Adam's two moments, moved by a rule per step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, TypedDict, overload

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


class _Lane:
    """Parameters of one group, device and dtype that take their t-th step now, and how they take
    it.
    """

    def __init__(self, group: dict[str, Any], update: Update, theta: Tensor) -> None:
        self.update = update
        self.hyper = Hyper.of(group)
        self.complex = theta.is_complex()
        fused, foreach = group["fused"], group["foreach"]
        device = theta.device.type
        if fused is None:
            fused = foreach is None and device in _FUSED_BY_DEFAULT
        if foreach is None:
            # Lists save kernel launches; without launches, one tensor at a time stays in the cache.
            foreach = device != "cpu"
        self.fuse = fused and update.phase is Phase.ADAPTIVE and update.rate > 0.0
        self.fused = Tensors([], [], [], [])
        self.plain = Tensors([], [], [], [])
        self.plain_step = foreach_step if foreach else single_step

    def add(self, theta: Tensor, grad: Tensor, m: Tensor, v: Tensor) -> None:
        """Append one parameter to the tensors of the fused kernel or to the others."""
        if self.complex:
            # Adam treats the real and the imaginary part as two coordinates.
            theta, grad, m, v = (torch.view_as_real(t.resolve_conj()) for t in (theta, grad, m, v))
        stride = theta.stride()
        # The kernel pairs memory, not indices. The moments are dense: equal strides say that theta
        # is, too.
        if (
            self.fuse
            and stride == m.stride() == v.stride()
            and theta.dtype == grad.dtype == m.dtype
        ):
            if grad.stride() != stride:
                grad = torch.empty_like(m).copy_(grad)
            self.fused.append(theta, grad, m, v)
        else:
            self.plain.append(theta, grad, m, v)

    def step(self) -> None:
        """Move the parameters."""
        if self.fused.thetas:
            fused_step(self.fused, self.update, self.hyper)
        if self.plain.thetas:
            self.plain_step(self.plain, self.update, self.hyper)


class MomentOptimizer(Optimizer, ABC):
    """Base of the optimizers of this room. Subclasses say what step t does (`update_at`); this
    class does it.

    The state of a parameter is `step` (a Python int: its own count, so that a parameter whose first
    gradient comes late starts its own warm-up), `exp_avg` (m) and `exp_avg_sq` (v), under torch's
    names, so that state dicts of torch.optim.Adam, AdamW and RAdam load here. Step counts live on
    the host: no step waits for the device. Two consequences: a step cannot be captured in a CUDA
    graph (refused), and torch.amp.GradScaler unscales in its ordinary way rather than inside the
    kernel.

    Each parameter takes the first of three paths that its group allows; they agree to rounding:

    - fused, torch's one-pass Adam kernel: real floating parameters on CPU or CUDA, when theta moves
      by m/(sqrt(v) + eps). A gradient whose memory layout differs from its parameter's is copied
      into it first;
    - foreach, torch's list operations: everything else on accelerators;
    - one tensor at a time: everything else on the CPU, where it is faster than lists and needs less
      memory.

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
        """Return what step t (from 1) does to the parameters of `group` that take their t-th
        step.
        """

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError if a setting of `group` is outside its range."""
        for name in ("lr", "eps", "weight_decay"):
            if not 0.0 <= float(group[name]) < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {group[name]!r}")
        betas = group["betas"]
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        if group["fused"] and group["foreach"]:
            raise ValueError(
                "fused=True and foreach=True exclude each other: give at most one of them"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; settings that it lacks come from the defaults.

        Raises:
            ValueError: a setting outside its range.
        """
        self.check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore pickled or loaded state, also that of torch's own Adam family.

        Raises:
            ValueError: the state was written with amsgrad=True.
        """
        super().__setstate__(state)
        # torch adds this to whatever it restores; a loaded group must not differ from one that
        # never stopped.
        self.defaults.pop("differentiable", None)
        for group in self.param_groups:
            if group.get("amsgrad"):
                raise ValueError(f"{type(self).__name__} cannot continue a state with amsgrad=True")
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

    # Left out of torch.compile: the fused kernel is fast already, and t would be compiled in as a
    # constant. torch.compiler.disable does the same, but imports the whole compiler with this
    # module.
    @_disable_dynamo
    @torch.no_grad()
    def _advance(self) -> None:
        self._check_gradients()
        for group in self.param_groups:
            lanes: dict[Hashable, _Lane] = {}
            for theta in group["params"]:
                grad = theta.grad
                if grad is None:
                    continue
                state = self.state[theta]
                if not state:
                    _start_state(theta, state)
                t = state["step"] = state["step"] + 1
                key = (t, theta.device, theta.dtype)
                lane = lanes.get(key)
                if lane is None:
                    lane = lanes[key] = _Lane(group, self.update_at(t, group), theta)
                lane.add(theta, grad, state["exp_avg"], state["exp_avg_sq"])
            for lane in lanes.values():
                lane.step()

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
                        f"{type(self).__name__} takes dense gradients only; that of parameter "
                        f"{name}, shape {tuple(theta.shape)}, is {theta.grad.layout}: build the "
                        "embedding with sparse=False, or give this parameter to "
                        "torch.optim.SparseAdam"
                    )
        if on_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{type(self).__name__}.step cannot be captured in a CUDA graph: the factors of "
                "each step are computed on the host and would be frozen; capture the forward and "
                "backward pass only"
            )


def _start_state(theta: Tensor, state: dict[str, Any]) -> None:
    state["step"] = 0
    for name in _MOMENTS:
        state[name] = torch.zeros_like(theta, memory_format=torch.preserve_format)


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
