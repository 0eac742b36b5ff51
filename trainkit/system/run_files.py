"""The files that a run leaves in its folder, in words."""

from __future__ import annotations

from fnmatch import fnmatch

RUN_FILES = {
    "report.html": "one page with the curves and what the plugins measured",
    "summary.json": "how the run ended, final and best metrics, steps, time",
    "weights.safetensors": "the best weights; `timm.create_model(…, checkpoint_path=…)` loads them",
    "metrics.jsonl": "every logged value, one line per step or validation; epochs count from 1",
    "metrics.csv": "the same as one table",
    "recipe.yaml": "the recipe, every default written out",
    "environment.json": "versions, device, git commit",
    "checkpoints/last.pt": "checkpoint to resume from",
    "checkpoints/best-*.safetensors": "the weights of the best validations",
}
"""What each file is. The README's table is this one."""


def what_is(file: str) -> str:
    """Return what a file of a run folder is; nothing if it is not a run's own."""
    for pattern, words in RUN_FILES.items():
        if fnmatch(file, pattern):
            return words
    return ""
