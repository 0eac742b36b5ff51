"""Which parameters train: chosen for each epoch by the hook `select_trainable`."""

from __future__ import annotations

from torch import nn

from trainkit.checks.run_tensors import owned_by
from trainkit.errors import PluginError, some
from trainkit.hooks.run import Run


def trained(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that have a gradient."""
    return frozenset(name for name, p in model.named_parameters() if p.requires_grad)


def optimized(run: Run) -> list[str]:
    """Return the names of the parameters that the optimizer holds, in the model's order."""
    held = set(map(id, owned_by(run.optimizer)))
    found: list[str] = []
    for name, p in run.model.named_parameters():
        if id(p) in held:
            found.append(name)
    return found


def select(run: Run, before: frozenset[str]) -> frozenset[str]:
    """Ask which parameters train in the epoch that begins, and set `requires_grad` so; return their
    names.

    A frozen parameter has no gradient, so that no optimizer moves or decays it, or touches its
    averages.

    Args:
        run: the run.
        before: which trained until now.

    Raises:
        PluginError: the answer names what cannot train, or nothing, or somebody set `requires_grad`
            himself.
    """
    if changed := sorted(before ^ trained(run.model)):
        raise PluginError(
            f"requires_grad of {some(changed)} was changed while the run was under way; set it "
            "where the model is built, or say what trains in each epoch by wrapping the hook "
            "select_trainable"
        )
    possible = optimized(run)
    chosen = frozenset(run.hook.select_trainable(model=run.model, run=run))
    if unknown := sorted(chosen.difference(possible)):
        raise PluginError(
            f"select_trainable: {some(unknown)} cannot train: the model has no such parameter, or "
            "the optimizer does not hold it; let it require a gradient when the model is built"
        )
    if not chosen:
        raise PluginError(
            f"select_trainable: no parameter would train in epoch {run.epoch + 1}; leave some"
        )
    if chosen != before:
        for name, parameter in run.model.named_parameters():
            if name in possible:
                parameter.requires_grad_(name in chosen)
                parameter.grad = None
    return trained(run.model)
