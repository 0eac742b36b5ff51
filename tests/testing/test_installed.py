"""Every plugin that is installed, and the first plugin of the docs, pass the conformance kit."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import trainkit.testing
from trainkit.hooks.discovery import installed
from trainkit.testing import Case

ROOT = Path(__file__).parents[2]

# What a plugin needs in order to act within six steps, where its defaults are for longer runs.
TASKS = {
    "ways": 3,
    "steps": 1,
    "queries": 2,
    "tasks": 2,
    "steps_per_epoch": 3,
    "val_episodes": 2,
    "test_episodes": 2,
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "batch_group_norm": {"options": {"channel_groups": 8}},
    "early_stopping": {"options": {"patience": 1, "min_delta": 1.0}},
    "example_weighing": {"options": {"alpha": 0.1}},  # tuned, it leaves training alone
    "ghost_batch_norm": {"options": {"size": 4}},
    "learning_to_balance": {
        "options": {"draws": 2, "z_layers": "last_stage"},
        "recipe": {"plugins": {"maml": TASKS | {"max_shot": 2}}},
    },
    "norm_bias": {"recipe": {"optimizer": {"weight_decay": 0.0}}},
    "spectral_rank": {"options": {"every": 2}},
    # A plain ReLU network, and a loss that an affine model minimises although planes separate so
    # few examples.
    "trap_init": {
        "recipe": {
            "model": {"name": "mlp", "args": {"drop_rate": 0.0, "hidden": [16]}},
            "data": {"image_size": 4},
            "train": {"loss": {"smoothing": 0.1}},
        },
    },
    "maml": {"options": TASKS},
    "meta_dropout": {"options": {"test_samples": 2}, "recipe": {"plugins": {"maml": TASKS}}},
    "meta_sgd": {"recipe": {"plugins": {"maml": TASKS}}},
}
ABSENT = {
    name for name in ("wandb",) if find_spec(name) is None
}  # an optional package that the plugin is about


@trainkit.testing.parametrize(
    *(Case(name, **EXAMPLES.get(name, {})) for name in installed() if name not in ABSENT)
)
def test_an_installed_plugin_conforms(check: Callable[[], None]) -> None:
    check()


def test_the_first_plugin_of_the_docs_conforms(tmp_path: Path) -> None:
    code = re.search(
        r"```python\n(.*?)```", (ROOT / "docs" / "first_plugin.md").read_text(), re.DOTALL
    )
    assert code is not None
    (tmp_path / "noise.py").write_text(code[1])
    trainkit.testing.check_plugin(f"{tmp_path / 'noise.py'}:GradientNoise", {"scale": 0.1})
