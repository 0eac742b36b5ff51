"""The short use that the package shows first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import trainkit_plugins.maml as maml
from trainkit_plugins.maml import Conv4


def test_the_code_that_the_package_shows_trains_and_predicts() -> None:
    shown = []
    for line in (maml.__doc__ or "").splitlines():
        if line.startswith("    ") and line.lstrip().startswith(("plan", "loop", "loss", "logits")):
            shown.append(line.strip())
    torch.manual_seed(0)
    examples = SimpleNamespace(inputs=torch.randn(6, 1, 16, 16), targets=torch.arange(6) % 3)
    model = Conv4(num_classes=3, img_size=16, channels=4)
    names: dict[str, Any] = {name: getattr(maml, name) for name in maml.__all__}
    names |= {"model": model, "support": examples, "query": examples}
    exec("\n".join(shown), names)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert names["logits"].shape == (6, 3)
