"""What the answer to a value hook must be: a wrong one is refused where it is given, not where
it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any


def flaw(hook: str, answer: Any) -> str:
    """Return what is wrong with the answer to one of core's value hooks, and what it must be;
    empty if nothing is.
    """
    check = _CHECKS.get(hook)
    if check is not None:
        return check(answer)
    return ""


def _with(what: str, *names: str) -> Callable[[Any], str]:
    """Return a check for something that has these attributes."""

    def check(answer: Any) -> str:
        missing = []
        for name in names:
            if not hasattr(answer, name):
                missing.append(name)
        if missing:
            return f"{_kind(answer)}; it must be {what} (it has no {', '.join(missing)})"
        return ""

    return check


def _groups(answer: Any) -> str:
    right = isinstance(answer, list) and all(
        isinstance(group, dict) and "params" in group for group in answer
    )
    if right:
        return ""
    return f"{_kind(answer)}; it must be a list of dicts with `params`"


def _loss(answer: Any) -> str:
    import torch

    if not isinstance(answer, torch.Tensor):
        return f"{_kind(answer)}; it must be the mean loss as a scalar tensor"
    if answer.ndim:
        return f"a tensor of shape {list(answer.shape)}; it must be a scalar: take its mean"
    if not answer.is_floating_point():
        return f"a tensor of {answer.dtype}; it must be a real floating-point number"
    if torch.is_grad_enabled() and not answer.requires_grad:
        return (
            "a loss that depends on no parameter; it must be computed from tensors that have not "
            "been detached"
        )
    return ""


def _predictions(answer: Any) -> str:
    right = isinstance(answer, tuple) and len(answer) == 2
    if right:
        return ""
    return f"{_kind(answer)}; it must be trainkit.Predictions(logits, targets)"


def _names(answer: Any) -> str:
    right = isinstance(answer, Collection) and not isinstance(answer, str | bytes)
    if right and all(isinstance(name, str) for name in answer):
        return ""
    return f"{_kind(answer)}; it must be names of parameters"


def _kind(answer: Any) -> str:
    return f"a {type(answer).__name__}"


_CHECKS: dict[str, Callable[[Any], str]] = {
    "build_data": _with("a trainkit.Data", "train", "val"),
    "build_model": _with("a torch.nn.Module", "named_parameters", "named_modules"),
    "build_param_groups": _groups,
    "build_optimizer": _with("a torch optimizer", "param_groups", "step", "zero_grad"),
    "build_scheduler": _with("a scheduler", "step_update", "step", "state_dict", "load_state_dict"),
    "build_metrics": _with("a collection of metrics", "update", "compute", "reset", "keys"),
    "select_trainable": _names,
    "compute_loss": _loss,
    "compute_criterion": _loss,
    "evaluate_batch": _predictions,
}
