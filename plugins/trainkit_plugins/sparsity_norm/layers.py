"""What a model sees where entries of its input are missing: sparsity normalization, and what it is
compared with.

Each layer takes inputs [N, F] or [N, C, H, W] with NaN for what is missing, or an explicit mask
beside them, and returns inputs without gaps. What it needs to know of the training rows it learns
from them alone, once, and keeps in buffers, which its state holds; a state with other values is
refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .normalization import factor, observed, without_gaps
from .statistics import Statistics, statistics_of

Mask = Literal["entry", "pixel"]
"""`entry`: each number of the input by itself; `pixel`: one with a missing channel is missing in
all channels.
"""


class MissingInput(nn.Module):
    """The part that all layers share: the mask, centring, and what is learned from the training
    rows.

    Args:
        center: take the mean of the observed training entries off first, by channel of an image or
            by feature.
        mask: what is observed or missing as one.
    """

    k: Tensor | None
    mean: Tensor | None
    rate: Tensor | None

    def __init__(self, *, center: bool = False, mask: Mask = "entry") -> None:
        super().__init__()
        self.center = center
        self.mask = mask
        for name in ("k", "mean", "rate"):
            self.register_buffer(name, None)
        self.wanted: tuple[str, ...] = ("mean",) if center else ()
        """The buffers that the layer works with."""

    @property
    def learned(self) -> bool:
        """Whether it has all that it needs to know of the training rows."""
        return all(getattr(self, name) is not None for name in self.wanted)

    def fit(self, batches: Iterable[Tensor | tuple[Tensor, Tensor | None]]) -> None:
        """Learn from training inputs, as `statistics_of` takes them, in one pass."""
        self.learn(statistics_of(batches, whole_pixels=self.mask == "pixel"))

    def learn(self, statistics: Statistics) -> None:
        """Learn from the statistics of the training rows.

        Raises:
            ValueError: the layer is for images, and these are rows of features.
        """
        self.check(statistics.shape)
        if self.center:
            self.mean = statistics.aligned(statistics.mean)

    def check(self, input_size: Sequence[int]) -> None:
        """Refuse inputs of a shape, (C, H, W) or (F,), that the layer is not for.

        Raises:
            ValueError: it is for images, and these are rows of features.
        """
        if len(input_size) == 1 and self.mask == "pixel":
            raise ValueError("rows of features have no pixels; set mask to entry")

    def forward(self, x: Tensor, m: Tensor | None = None) -> Tensor:
        """Return what the model sees.

        Args:
            x: inputs [N, F] or [N, C, H, W].
            m: mask of a shape that expands to that of `x`; without one, what is NaN is missing.

        Raises:
            RuntimeError: the layer has learned nothing yet.
        """
        if not self.learned:
            raise RuntimeError(
                f"{type(self).__name__} knows nothing of the training rows yet; call fit(batches) "
                "first"
            )
        by_nan = m is None and self.mask == "entry"
        m = observed(x, m, whole_pixels=self.mask == "pixel")
        if self.center and self.mean is not None:
            x = x - self.mean.to(x.dtype)
        return self.fill(without_gaps(x) if by_nan else torch.where(m, x, 0), m)

    def fill(self, x: Tensor, m: Tensor) -> Tensor:
        """Return what the model sees of inputs that are 0 where `m`, a boolean for every entry,
        says missing.
        """
        raise NotImplementedError

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in self.wanted:
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None and own is None:
                setattr(self, name, saved.detach().clone())
            elif saved is not None and not torch.equal(saved.to(own.device, own.dtype), own):
                error_msgs.append(
                    f"{prefix}{name} was {_shown(saved)} when the weights were saved, and is "
                    f"{_shown(own)} by the training rows here: they are not the same rows"
                )
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _shown(value: Tensor) -> str:
    numbers = [f"{v:.6g}" for v in value.flatten()[:4].tolist()]
    shown = ", ".join(numbers)
    if value.numel() > 4:
        shown += f" … ({value.numel()} numbers)"
    return shown


class SparsityNorm(MissingInput):
    """K * (x * m) / ||m||_1, in training and at test alike; zeros for a row of which nothing is
    observed.

    Args:
        k: K; None: the mean of ||m||_1 over the training rows.
        center: take the mean of the observed training entries off first, by channel of an image or
            by feature.
        mask: what is observed or missing as one.
        per: `row` counts all observed entries of an input; `channel` those of each channel of an
            image by itself.

    Raises:
        ValueError: `k` is not above 0.
    """

    def __init__(
        self,
        k: float | None = None,
        *,
        center: bool = False,
        mask: Mask = "entry",
        per: Literal["row", "channel"] = "row",
    ) -> None:
        super().__init__(center=center, mask=mask)
        self.wanted = ("k", *self.wanted)
        self.per = per
        self.given = k is not None
        if k is not None:
            if not 0 < k < float("inf"):
                raise ValueError(f"K is a number above 0; got {k}")
            self.k = torch.tensor(float(k))

    def check(self, input_size: Sequence[int]) -> None:
        """Refuse rows of features where the layer counts in channels."""
        super().check(input_size)
        if len(input_size) == 1 and self.per == "channel":
            raise ValueError("rows of features have no channels to count in; set per to row")

    def learn(self, statistics: Statistics) -> None:
        """Learn K (unless it was given) and the means from the statistics of the training rows."""
        super().learn(statistics)
        if self.given:
            return
        if self.per == "channel":
            self.k = statistics.aligned(statistics.mean_count_by_channel)
        else:
            self.k = torch.tensor(statistics.mean_count)

    def fill(self, x: Tensor, m: Tensor) -> Tensor:
        """Return the normalised inputs."""
        assert self.k is not None  # said by `wanted`
        return x * factor(m, self.k, x.dtype, per_channel=self.per == "channel")


class ZeroImputation(MissingInput):
    """x * m: zeros where nothing is observed; with `center`, the mean of the training entries
    stands there.
    """

    def fill(self, x: Tensor, m: Tensor) -> Tensor:
        """Return the inputs with zeros."""
        return x


class MeanImputation(MissingInput):
    """The mean of the observed training entries where nothing is observed, by channel of an image
    or by feature.

    Args:
        mask: what is observed or missing as one.
    """

    def __init__(self, *, mask: Mask = "entry") -> None:
        super().__init__(center=True, mask=mask)

    def fill(self, x: Tensor, m: Tensor) -> Tensor:
        """Return the inputs with means."""
        assert self.mean is not None  # said by `wanted`
        return x + self.mean.to(x.dtype)


class MaskAsInput(ZeroImputation):
    """x * m with the mask as further channels behind it: the model has twice the channels or
    features.

    With masks by pixel there is one further channel.
    """

    def fill(self, x: Tensor, m: Tensor) -> Tensor:
        """Return the inputs with zeros, and the mask."""
        return torch.cat([x, (m[:, :1] if self.mask == "pixel" else m).to(x.dtype)], dim=1)


class InvertedDropout(MissingInput):
    """x * m / p with one p for all rows: the share of the training entries that is observed.

    What inverted dropout does in training, with the data's gaps for its mask. It differs from
    sparsity normalization with K = d, the number of entries, in that there p = ||m||_1 / d is each
    row's own.
    """

    def __init__(self, *, center: bool = False, mask: Mask = "entry") -> None:
        super().__init__(center=center, mask=mask)
        self.wanted = ("rate", *self.wanted)

    def learn(self, statistics: Statistics) -> None:
        """Learn p, and the means, from the statistics of the training rows."""
        super().learn(statistics)
        self.rate = torch.tensor(statistics.rate)

    def fill(self, x: Tensor, m: Tensor) -> Tensor:
        """Return the scaled inputs."""
        assert self.rate is not None  # said by `wanted`
        return x / self.rate.to(x.dtype)
