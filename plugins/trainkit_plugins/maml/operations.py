"""Operations inside a task that torch cannot differentiate twice, replaced by equals that it can.

A mode that is on only while a task computes, and only in its own thread: no module, switch or
global is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..common.precision import promoted
from .kernels import batch_norm, conv2d


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Return relu6(x + 3) / 6, which is the hard sigmoid; torch's own has no second derivative."""
    return F.relu6(input + 3) / 6


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return scaled dot-product attention by plain matrix products; the fused kernels have no
    second derivative.
    """
    function = torch.ops.aten._scaled_dot_product_attention_math
    result: Tensor = function(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
    return result


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: batch_norm,
    F.conv2d: conv2d,
    F.hardsigmoid: hardsigmoid,
    F.scaled_dot_product_attention: attention,
}


class TaskOperations(TorchFunctionMode):
    """While on, in this thread, such operations run as their twice differentiable equals."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the equal of `func`, or itself."""
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


Moments = tuple[Tensor, Tensor]


class RecordStatistics(TorchFunctionMode):
    """While on, keeps the mean and variance [C] of what every batch norm is given, in the order
    of the calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Moments] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`; if it is a batch norm, measure its input as well."""
        if func is F.batch_norm:
            x = promoted(args[0])
            variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
            self.found.append((mean, variance))
        return func(*args, **(kwargs or {}))


class ReplayStatistics(TorchFunctionMode):
    """While on, every batch norm normalises with the statistics recorded at the same place in the
    order of calls.

    Unlike with torch's running averages, gradients flow into the statistics.
    """

    def __init__(self, recorded: Sequence[Moments]) -> None:
        super().__init__()
        self._next = iter(recorded)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`; if it is a batch norm, normalise its input with what was recorded."""
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        x, _, _, weight, bias, _, _, eps = _batch_norm_arguments(*args, **(kwargs or {}))
        mean, variance = next(self._next)
        shape = (1, -1, *(1 for _ in range(2, x.ndim)))
        y = (promoted(x) - mean.view(shape)) * (variance + eps).rsqrt().view(shape)
        if weight is not None:
            y = y * weight.view(shape)
        if bias is not None:
            y = y + bias.view(shape)
        return y.to(x.dtype)


def _batch_norm_arguments(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    return input, running_mean, running_var, weight, bias, training, momentum, eps


def lacks_second_derivative(error: BaseException) -> bool:
    """Return whether an error says that some operation cannot be differentiated twice."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        ("derivative for" in text and "is not implemented" in text) or "differentiate twice" in text
    )


def explained(error: BaseException, model: str) -> list[tuple[str, str]]:
    """Return the option that an error of torch's is about, and what to do; nothing where it is
    about none.

    Args:
        error: what came out of a task.
        model: its name.
    """
    if lacks_second_derivative(error):
        reason = str(error).splitlines()[0]
        why = f"{model} has an operation that torch cannot differentiate twice ({reason})"
        return [("order", f"{why}; set order to first, or take another model")]
    if "more than 1 value per" in str(error):
        why = f"a batch norm of {model} has a single value per channel to normalise"
        fix = (
            "take larger images, more shots, norm_statistics: running, or a model with other norms"
        )
        return [("norm_statistics", f"{why}; {fix}")]
    return []
