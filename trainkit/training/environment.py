"""Facts about where a run happened, kept beside its results."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

import torch

from trainkit.training.device import Device

_PACKAGES = (
    "trainkit",
    "torch",
    "timm",
    "torchvision",
    "torchmetrics",
    "pluggy",
    "pydantic",
    "numpy",
)


def facts(device: Device) -> dict[str, Any]:
    """Return versions, device, threads and, inside a git checkout, its commit."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.describe(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        found["git"] = {"commit": commit, "changed": bool(_git("status", "--porcelain"))}
    return found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode == 0:
        return done.stdout.strip()
    return ""
