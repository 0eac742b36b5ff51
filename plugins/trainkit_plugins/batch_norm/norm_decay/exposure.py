"""Which batch norms have a way to the output on which nothing normalizes again.

Decaying a norm's scale and shift changes what a network computes only where no later norm undoes it
(Summers and Dinneen, arXiv 1906.03548, on weight decay of scale and shift). Where that is so
follows from the graph of the forward pass, which autograd records. The pass runs on meta tensors:
shapes are computed, numbers are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ...common.preserve import kept_modes

Predicate = Callable[[nn.Module], bool]
_NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether `module` is a batch norm of any number of dimensions, timm's and converted
    ones included.
    """
    return isinstance(module, _BatchNorm)


def is_norm(module: nn.Module) -> bool:
    """Return whether `module` normalizes what it is given: one of torch's norms, or of timm's,
    which derive from them.

    Norms that derive from none of torch's (timm's EvoNorm and FilterResponseNorm, say) need a
    predicate of their own.
    """
    return isinstance(module, _NORMS)


def exposed_norms(
    model: nn.Module,
    input_size: Sequence[int] | None = None,
    *,
    blocking: Predicate = is_batch_norm,
) -> list[str]:
    """Return the batch norms from which some path leads to an output of `model` without passing a
    blocking module.

    The model runs once in training mode, on two examples without values; afterwards its modes,
    tensors, hooks and torch's random streams are as before. Several outputs (heads of distillation,
    features) all count. Modules called several times count if any of the calls is exposed.

    Args:
        model: called with one tensor.
        input_size: shape of one example, without the batch; default: what timm notes in
            `model.pretrained_cfg`.
        blocking: which modules undo what the layers before them do to the scale; default: batch
            norms.

    Returns:
        Their names, in the order of `model.named_modules()`; none for a model without batch norm.

    Raises:
        ValueError: the size is not known, the model cannot run on it, or no output depends on the
            input.
    """
    marked = {m: n for n, m in model.named_modules() if is_batch_norm(m) or blocking(m)}
    if not any(is_batch_norm(module) for module in marked):
        return []
    size = _input_size(model) if input_size is None else tuple(input_size)
    found = set(
        _reached(_outputs(model, size, marked), {name for m, name in marked.items() if blocking(m)})
    )
    return [name for module, name in marked.items() if is_batch_norm(module) and name in found]


def _input_size(model: nn.Module) -> tuple[int, ...]:
    noted = getattr(model, "pretrained_cfg", None)
    size = noted.get("input_size") if isinstance(noted, Mapping) else None
    if size is None:
        raise ValueError(
            f"{type(model).__name__} does not say how large its input is; give input_size=(C, H, W)"
        )
    return tuple(size)


class _Mark(torch.autograd.Function):
    """The identity, leaving a module's name in the graph. A copy, because what follows may work
    in place.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, name: str) -> Tensor:
        ctx.name_of_norm = name
        return output.clone()

    @staticmethod
    def backward(
        ctx: Any, *gradients: Any
    ) -> Any:  # pragma: no cover - the graph is walked, never run
        raise NotImplementedError


def _outputs(
    model: nn.Module, size: tuple[int, ...], marked: Mapping[nn.Module, str]
) -> list[Tensor]:
    """Run `model` on meta tensors with marks behind the given modules; return every tensor that
    it gives.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        # One entry for every place that holds a tensor: functional_call's own way with tied
        # tensors, which would find the others, leaves models with aliased modules changed
        # (pytorch#164759).
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                trains = isinstance(tensor, nn.Parameter) and (
                    tensor.is_floating_point() or tensor.is_complex()
                )
                tensors[f"{prefix}.{name}".lstrip(".")] = torch.empty_like(
                    tensor, device="meta"
                ).requires_grad_(trains)
    hooks = [module.register_forward_hook(_marking(name)) for module, name in marked.items()]
    inputs = torch.empty((2, *size), device="meta", requires_grad=True)
    try:
        # Evaluation mode would leave tensors derived from these in the caches of some timm models.
        with kept_modes(model), torch.random.fork_rng(devices=[]), torch.enable_grad():
            model.train()
            # A leaf that requires gradients cannot be changed in place, its copy can.
            given = torch.func.functional_call(model, tensors, (inputs.clone(),), tie_weights=False)
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the model cannot run on inputs of size {size}: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
    outputs = [tensor for tensor in _tensors(given) if tensor.grad_fn is not None]
    if not outputs:
        raise ValueError("no output of the model depends on its input or its parameters")
    return outputs


def _marking(name: str) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, given: Any, output: Any) -> Any:
        return cast(Tensor, _Mark.apply(output, name)) if isinstance(output, Tensor) else output

    return hook


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _reached(outputs: Iterable[Tensor], blocking: set[str]) -> Iterator[str]:
    """Walk the graph back from the outputs; yield the marks met, and go no further behind those
    that block.
    """
    waiting: list[Any] = [tensor.grad_fn for tensor in outputs]
    seen: set[Any] = set(waiting)
    while waiting:
        node = waiting.pop()
        name = getattr(node, "name_of_norm", None)
        if name is not None:
            yield name
        if name in blocking:
            continue
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
