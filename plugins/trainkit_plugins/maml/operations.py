"""Operations inside a task that torch cannot differentiate twice, replaced by equals that it can.

A mode that is on only while a task computes, and only in its own thread: no module, switch or global is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


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
    """Return scaled dot-product attention by plain matrix products; the fused kernels have no second derivative."""
    function = torch.ops.aten._scaled_dot_product_attention_math
    result: Tensor = function(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
    return result


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.hardsigmoid: hardsigmoid,
    F.scaled_dot_product_attention: attention,
}


class TaskOperations(TorchFunctionMode):
    """While on, in this thread, such operations run as their twice differentiable equals."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the equal of `func`, or itself."""
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def lacks_second_derivative(error: BaseException) -> bool:
    """Return whether an error says that some operation cannot be differentiated twice."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        ("derivative for" in text and "is not implemented" in text) or "differentiate twice" in text
    )
