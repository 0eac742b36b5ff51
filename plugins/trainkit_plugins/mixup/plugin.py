"""`mixup`: timm's Mixup and CutMix as a plugin."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from trainkit import Batch, Data, Plugin, Run, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Mixup(Plugin):
    """Train on mixtures of two images and of their labels (mixup), or on one pasted into the other
    (CutMix).

    mixup: x = lam * x_i + (1 - lam) * x_j with lam ~ Beta(alpha, alpha); CutMix: a rectangle of
    share 1 - lam of x_i is replaced by x_j's. Labels become lam * y_i + (1 - lam) * y_j either way.
    j is i counted from the batch's end.
    """

    citation: ClassVar[str] = """\
@inproceedings{zhang2018mixup,
  title={mixup: Beyond Empirical Risk Minimization},
  author={Zhang, Hongyi and Cisse, Moustapha and Dauphin, Yann N. and Lopez-Paz, David},
  booktitle={International Conference on Learning Representations},
  year={2018}
}
@inproceedings{yun2019cutmix,
  title={{CutMix}: Regularization Strategy to Train Strong Classifiers with Localizable Features},
  author={Yun, Sangdoo and Han, Dongyoon and Oh, Seong Joon and Chun, Sanghyuk and Choe,
      Junsuk and Yoo, Youngjoon},
  booktitle={IEEE/CVF International Conference on Computer Vision},
  pages={6023--6032},
  year={2019}
}"""
    neutral: ClassVar[dict[str, Any]] = {"prob": 0.0, "label_smoothing": 0.0}

    mixup_alpha: float = Field(
        0.2,
        allow_inf_nan=False,
        ge=0,
        description="alpha of mixup's Beta distribution; 0 switches mixup off",
    )
    cutmix_alpha: float = Field(
        0.0,
        allow_inf_nan=False,
        ge=0,
        description="alpha of CutMix's Beta distribution; 0 switches CutMix off",
    )
    cutmix_minmax: tuple[float, float] | None = Field(
        None,
        description="CutMix with a rectangle whose sides are uniform between these shares of the "
        "image's, in place of `cutmix_alpha`; null: by `cutmix_alpha`",
    )
    prob: float = Field(
        1.0, ge=0, le=1, description="probability of mixing (per batch, pair or image: `mode`)"
    )
    switch_prob: float = Field(
        0.5, ge=0, le=1, description="where both are on: probability of CutMix"
    )
    mode: Literal["batch", "pair", "elem"] = Field(
        "batch",
        description="one lam for the whole batch, for each pair of images, or for each image",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="smoothing of the labels before mixing (instead of train.loss.smoothing)",
    )

    off_epoch: int = Field(
        0,
        ge=0,
        description="mixing ends with this epoch, from 1; labels are smoothed until the end; "
        "0: never (timm's mixup_off_epoch)",
    )

    _mix: Any = PrivateAttr(default=None)

    @field_validator("cutmix_minmax")
    @classmethod
    def _check_shares(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1] <= 1:
            raise ValueError(
                f"is two shares with 0 <= low < high <= 1; got [{value[0]:g}, {value[1]:g}]"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> Mixup:
        if self.prob > 0 and self.mixup_alpha == 0 and not self._cuts:
            raise ValueError(
                "mixup_alpha and cutmix_alpha are both 0, so nothing would be mixed; set one above "
                "0, or prob to 0"
            )
        if self.cutmix_minmax is not None and self.cutmix_alpha:
            raise ValueError(
                "cutmix_alpha and cutmix_minmax both say how large CutMix's rectangles are, and "
                "timm would ignore the first; leave one of them out"
            )
        return self

    @property
    def _cuts(self) -> bool:
        return self.cutmix_alpha > 0 or self.cutmix_minmax is not None

    @hookimpl(wrapper=True)
    def build_data(self, run: Run) -> Generator[None, Data, Data]:
        """Refuse what could not be mixed."""
        data = yield
        self._refuse_losses(run)
        if self._off:
            return data
        if data.aug_splits > 1:
            self.refuse(
                run,
                "splits",
                f"shows each image {data.aug_splits} times in a batch, and {self.name} would mix "
                f"these with others; set it to 1, or drop {self.name}",
                section="data.augment",
            )
        side = min(data.input_size[1:], default=0)
        if self.cutmix_minmax is not None and side:
            low, high = (int(side * share) for share in self.cutmix_minmax)
            if low == high:
                why = f"leave no choice on images of {side} pixels: {low} to {high}; set them apart"
                self.refuse(run, "cutmix_minmax", f"its shares {why}")
        return data

    def _refuse_losses(self, run: Run) -> None:
        """Refuse losses that would take mixed labels for something else."""
        loss = run.recipe.train.loss
        if self._off:
            return
        if loss.name == "asymmetric":
            why = (
                "asymmetric takes one class per image, and mixed images have two; use cross_entropy"
                " or bce, or drop"
            )
            self.refuse(run, "name", f"{why} {self.name}", section="train.loss")
        if loss.smoothing and (self.label_smoothing or loss.name == "bce"):
            happens = "smooths them again"
            if loss.name == "bce":
                happens = "ignores its own smoothing when labels are mixed"
            self.refuse(
                run,
                "smoothing",
                f"is {loss.smoothing:g} and mixup.label_smoothing is {self.label_smoothing:g}, but "
                f"{loss.name} {happens}; set train.loss.smoothing to 0 and use "
                "mixup.label_smoothing",
                section="train.loss",
            )

    @property
    def _off(self) -> bool:
        return self.prob == 0 and self.label_smoothing == 0

    @hookimpl(wrapper=True)
    def prepare_batch(self, run: Run) -> Generator[None, Any, Any]:
        """Mix a training batch once it is on its device."""
        batch = yield
        if self._off:
            return batch
        if not isinstance(batch, Batch) or batch.targets.ndim != 1:
            got = repr(type(batch))
            if isinstance(batch, Batch):
                got = f"targets of shape {tuple(batch.targets.shape)}"
            self.refuse(
                run,
                "",
                f"needs batches of images with one class each, and got {got}; switch off the "
                "plugin that makes them so, or mixup",
            )
        if self._mix is None:
            self._mix = self._make(run)
        with self._own_numpy_stream(run.device.rank):
            return self._mixed(batch, ended=0 < self.off_epoch <= run.epoch)

    def _make(self, run: Run) -> Any:
        from timm.data.mixup import Mixup as TimmMixup

        return TimmMixup(
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
            cutmix_minmax=self.cutmix_minmax,
            prob=self.prob,
            switch_prob=self.switch_prob,
            mode=self.mode,
            label_smoothing=self.label_smoothing,
            num_classes=run.recipe.model.num_classes or run.data.num_classes,
        )

    def _mixed(self, batch: Batch, *, ended: bool) -> Batch:
        import torch
        from timm.data.mixup import mixup_target

        inputs, targets = batch
        even = 0 if ended else len(inputs) // 2 * 2
        own: Tensor = mixup_target(
            targets[even:], self._mix.num_classes, smoothing=self.label_smoothing
        )
        if even == 0:
            return Batch(inputs, own)
        # timm writes into the batch that it is given, and that may be the data source's own memory.
        mixed, soft = self._mix(inputs[:even].clone(), targets[:even])
        if even == len(inputs):
            return Batch(mixed, soft)
        return Batch(torch.cat([mixed, inputs[even:]]), torch.cat([soft, own]))

    @contextmanager
    def _own_numpy_stream(self, rank: int) -> Iterator[None]:
        """Let timm, which draws from numpy's global stream, draw from this plugin's own instead.

        One number of the plugin's generator per batch seeds it; ranks, whose generators are alike,
        draw differently.
        """
        import numpy as np
        import torch

        seed = int(torch.randint(2**32, (), generator=self.generator()))
        before = np.random.get_state()
        np.random.seed((seed + rank) % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)

    def idle(self, run: Run) -> dict[str, str]:
        """Say what waits for another option."""
        idle = {}
        alone = not (self.mixup_alpha > 0 and self._cuts)
        if alone and self.switch_prob != type(self).model_fields["switch_prob"].default:
            idle["switch_prob"] = (
                "does nothing unless mixup_alpha and cutmix_alpha (or cutmix_minmax) are both on"
            )
        epochs = run.recipe.train.epochs
        if self.off_epoch >= epochs:
            idle["off_epoch"] = f"is {self.off_epoch}, and this run has {epochs} epochs, all mixed"
        if self.off_epoch and self.prob == 0:
            idle["off_epoch"] = "does nothing, because prob is 0"
        return idle

    def explain(self, run: Run) -> list[str]:
        """Say what share of batches is mixed how, and what becomes of an odd image."""
        both = self.mixup_alpha > 0 and self._cuts
        cutmix = self.prob * (self.switch_prob if both else float(self._cuts))
        until = ""
        if self.off_epoch:
            until = f" up to the end of epoch {self.off_epoch}, and none from then on"
        unit = {"batch": "batches", "pair": "pairs of images", "elem": "images"}[self.mode]
        return [
            (
                f"mixes {self.prob - cutmix:.0%} of {unit} by mixup (alpha {self.mixup_alpha:g}) "
                f"and {cutmix:.0%} by CutMix ({self._sizes}){until}; the last image of an "
                "odd batch stays as it is"
            ),
        ]

    @property
    def _sizes(self) -> str:
        if self.cutmix_minmax is None:
            return f"alpha {self.cutmix_alpha:g}"
        low, high = self.cutmix_minmax
        return f"sides of {low:.0%} to {high:.0%}"
