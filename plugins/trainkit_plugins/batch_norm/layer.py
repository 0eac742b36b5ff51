"""The generalized layer: what a torch BatchNorm becomes by an exchange of its class."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .blocks import block_sizes
from .functional import Blocks, followed, normalize_blocks, normalize_examples, update_moments


class GeneralizedBatchNorm(_BatchNorm):
    """A BatchNorm with ghost batches, channel groups and example weighing; made by
    :func:`convert_batch_norm`.

    Parameters, buffers and their names are those of the BatchNorm it was. While the block is the
    whole batch and a group one channel it calls torch's own batch norm in training, and while
    ``example_weight`` is 0 in evaluation: outputs, gradients and buffers are then torch's, bit for
    bit. In every other case the running moments follow the authors' rule (:func:`update_moments`),
    over the whole batch however it is grouped.

    Without running statistics (``track_running_stats=False``) evaluation normalizes as training
    does.

    Attributes:
        ghost_size: examples per block in training; ``None`` is the whole batch.
        channel_groups: groups that share statistics, in training and in evaluation; ``None`` is one
            per channel.
        example_weight: alpha in [0, 1], the weight of an example in its own inference statistics.
        blocks: which examples share a block (:func:`normalize_blocks`).
    """

    ghost_size: int | None
    channel_groups: int | None
    example_weight: float
    blocks: Blocks
    plain_class: type[_BatchNorm]

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [N, C, ...]; a timm BatchNormAct2d then drops and activates as it always
        did.
        """
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        momentum = self._count() if self.training and self.track_running_stats else 0.0
        batch_statistics = self.training or (self.running_mean is None and self.running_var is None)
        y = self._by_batch(input, momentum) if batch_statistics else self._by_running(input)
        drop, act = self._modules.get("drop"), self._modules.get("act")
        if drop is not None:
            y = drop(y)
        return y if act is None else cast(Tensor, act(y))

    @property
    def eps(self) -> float:
        """Added to the variance.

        Whatever fuses a BatchNorm into its neighbours or puts another class in its place asks for
        eps, and little else does. So this is where a layer refuses whose output is not gamma (x -
        running_mean) / sqrt(running_var + eps) + beta.
        """
        if self.example_weight != 0 or self._groups() is not None:
            raise RuntimeError(
                f"this {self.plain_class.__name__} uses example_weight={self.example_weight} and "
                f"channel_groups={self.channel_groups}, so its output does not follow from its "
                "running statistics alone: fusing it or replacing it by another layer would "
                "change the model; call revert_batch_norm(model) first if that is what you want"
            )
        return cast(float, self.__dict__["eps"])

    @eps.setter
    def eps(self, value: float) -> None:
        self.__dict__["eps"] = value

    def extra_repr(self) -> str:
        """Return torch's own line and the fields of this layer."""
        plain = super().extra_repr()  # type: ignore[no-untyped-call]
        return (
            f"{plain}, ghost_size={self.ghost_size}, channel_groups={self.channel_groups}, "
            f"example_weight={self.example_weight}, blocks={self.blocks}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (self.plain_class,), self.__dict__

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def _groups(self) -> int | None:
        return None if self.channel_groups == self.num_features else self.channel_groups

    def _count(self) -> float:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return self.momentum or 0.0

    def _by_batch(self, x: Tensor, momentum: float) -> Tensor:
        eps, groups = self.__dict__["eps"], self._groups()
        tracked = self.training and self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if tracked else (None, None)
        one_block = len(block_sizes(x.shape[0], self.ghost_size)) == 1
        if (one_block and groups is None) or x.numel() == 0:
            # torch's graph keeps the running moments, which it does not need in training, and a
            # pass of several blocks writes into them: by another version of the same memory the two
            # do not meet.
            mean, var = (t if t is None or followed() else t.data for t in (mean, var))
            return F.batch_norm(x, mean, var, self.weight, self.bias, True, momentum, eps)
        done = normalize_blocks(
            x,
            self.weight,
            self.bias,
            ghost_size=self.ghost_size,
            channel_groups=groups,
            eps=eps,
            blocks=self.blocks,
        )
        if mean is not None and var is not None:
            update_moments(mean, var, done.mean, done.var, momentum)
        return done.output

    def _by_running(self, x: Tensor) -> Tensor:
        eps, groups = self.__dict__["eps"], self._groups()
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None or (groups is None and self.example_weight == 0):
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, eps)
        return normalize_examples(
            x,
            mean,
            var,
            self.weight,
            self.bias,
            example_weight=self.example_weight,
            channel_groups=groups,
            eps=eps,
        )


_made: dict[type[_BatchNorm], type[GeneralizedBatchNorm]] = {}


def generalized(plain: type[_BatchNorm]) -> type[GeneralizedBatchNorm]:
    """Return the generalized subclass of a BatchNorm class, always the same one."""
    if plain not in _made:
        # It keeps the module's name: torch.fx takes a layer for a leaf by it.
        names = {
            "plain_class": plain,
            "__module__": plain.__module__,
            "__doc__": GeneralizedBatchNorm.__doc__,
        }
        made = type(f"Generalized{plain.__name__}", (GeneralizedBatchNorm, plain), names)
        _made[plain] = cast(type[GeneralizedBatchNorm], made)
    return _made[plain]


def _empty(plain: type[_BatchNorm]) -> GeneralizedBatchNorm:
    # A pickle cannot name a class that is made on demand, so it names the one it is made from.
    cls = generalized(plain)
    return cls.__new__(cls)
