"""The four-layer network of the few-shot papers.

Four times: 3x3 convolution with bias, batch norm, ReLU, 2x2 max pooling; then one linear layer. As
in Lee et al.'s releases (and, but for the number of filters, Finn et al.'s): the norm uses the
statistics of the batch that it is given, in training and testing alike, has a learned shift and no
scale, and eps 1e-3; weights are drawn from a normal distribution of deviation 0.02, cut at two
deviations in the convolutions; biases start at zero.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .fused import norm_relu_pool

Init = Literal["papers", "torch"]


class NormReluPool(nn.BatchNorm2d):
    """Batch norm that always uses the batch's own statistics, with a learned shift only; then ReLU
    and 2x2 pooling.

    Args:
        channels: C of its input [N, C, H, W].
        eps: added to the variance.
    """

    weight: None  # type: ignore[assignment]

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__(channels, eps=eps, track_running_stats=False)
        self.weight = None

    def forward(self, input: Tensor) -> Tensor:
        """Return [N, C, H // 2, W // 2] of [N, C, H, W]."""
        return norm_relu_pool(input, self.bias, self.eps)


class Conv4(nn.Module):
    """Four convolution blocks and a linear classifier.

    Args:
        num_classes: outputs; 0 for features only.
        in_chans: channels of the input.
        img_size: height and width of the input, at least 16.
        channels: filters of every convolution: 64 for Omniglot, 32 for mini-ImageNet and CIFAR in
            the papers.
        eps: of the norms.
        init: how weights and biases of convolutions and classifier start: ``"papers"`` as above,
            ``"torch"`` as torch makes them, uniform within one over the root of the inputs of an
            output.

    Raises:
        ValueError: ``img_size`` is less than 16, or ``init`` is neither of the two.
    """

    def __init__(
        self,
        num_classes: int = 5,
        in_chans: int = 1,
        img_size: int = 28,
        channels: int = 64,
        eps: float = 1e-3,
        init: Init = "papers",
    ) -> None:
        super().__init__()
        if init not in get_args(Init):
            raise ValueError(f"init {init!r}: give one of {', '.join(get_args(Init))}")
        if img_size < 16:
            raise ValueError(
                f"img_size {img_size}: four poolings leave nothing of it; give 16 or more"
            )
        self.num_classes, self.init = num_classes, init
        side = img_size // 16
        self.num_features = self.head_hidden_size = channels * side * side
        self.conv1, self.norm1 = (
            nn.Conv2d(in_chans, channels, 3, padding=1),
            NormReluPool(channels, eps),
        )
        self.conv2, self.norm2 = (
            nn.Conv2d(channels, channels, 3, padding=1),
            NormReluPool(channels, eps),
        )
        self.conv3, self.norm3 = (
            nn.Conv2d(channels, channels, 3, padding=1),
            NormReluPool(channels, eps),
        )
        self.conv4, self.norm4 = (
            nn.Conv2d(channels, channels, 3, padding=1),
            NormReluPool(channels, eps),
        )
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            if init == "papers":
                nn.init.trunc_normal_(conv.weight, std=0.02, a=-0.04, b=0.04)
                nn.init.zeros_(cast(Tensor, conv.bias))
            # The layout in which norm and pooling are fast; it spares every pass a copy of the
            # weights.
            conv.to(memory_format=torch.channels_last)
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the feature maps [N, channels, H/16, W/16] of images [N, in_chans, H, W]."""
        x = self.norm1(self.conv1(channels_last(x)))
        x = self.norm2(self.conv2(x))
        x = self.norm3(self.conv3(x))
        return cast(Tensor, self.norm4(self.conv4(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [N, num_classes] of feature maps, or the flattened features [N,
        num_features].
        """
        x = x.flatten(1)
        return x if pre_logits else cast(Tensor, self.head(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new classifier; 0 classes leave the features as they are."""
        self.num_classes = num_classes
        if num_classes == 0:
            self.head: nn.Module = nn.Identity()
            return
        head = nn.Linear(self.num_features, num_classes)
        if self.init == "papers":
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        self.head = head

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return which parameters belong to which layer, as timm asks for it: a block each, then
        the head.
        """
        return {"stem": r"^(?:conv|norm)1", "blocks": r"^(?:conv|norm)(\d)"}


def channels_last(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] in channels-last memory, also where C is 1 and torch sees no
    difference.
    """
    result = torch.empty_like(x, memory_format=torch.channels_last)
    return result.copy_(x)


def conv4(pretrained: bool = False, **arguments: Any) -> Conv4:
    """Make the four-layer network of the few-shot papers as timm makes models."""
    if pretrained:
        raise ValueError("there are no pretrained weights of conv4")
    for name in list(arguments):
        if name.startswith(("pretrained", "cache")):  # what timm says to every model
            del arguments[name]
    return Conv4(**arguments)
