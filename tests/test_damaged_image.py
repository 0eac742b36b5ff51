"""An image that cannot be read ends a run and loses no step: mended, the run goes on as if
nothing had been.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.test_sources import make_folder
from trainkit import resume, train
from trainkit.errors import UserError
from trainkit.training.checkpoint import read_state

Write = Callable[..., Path]

RECIPE = """\
seed: {seed}
model: {{name: test_resnet, args: {{drop_rate: 0.5}}}}
data: {{name: folder, root: {root}, image_size: 16, batch_size: 3, workers: 0,
    augment: {{hflip: 0.5}}}}
train: {{epochs: 2, device: cpu}}
optimizer: {{name: sgd, lr: 0.01}}
"""


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("split", "steps"), [("train", 1), ("validation", 4)])
def test_a_run_goes_on_where_an_image_could_not_be_read(
    write: Write, tmp_path: Path, split: str, steps: int
) -> None:
    root = make_folder(tmp_path / "images")
    recipe = write(RECIPE.format(root=root, seed=0))
    whole = train(recipe, run_dir=tmp_path / "whole").folder
    path = root / split / "blue" / "1.png"
    content = path.read_bytes()
    path.write_bytes(content[:60])
    with pytest.raises(UserError, match=r"blue/1\.png: is no image that can be read"):
        train(recipe, run_dir=tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == steps
    assert summary["status"].startswith(f"failed: {path}: is no image that can be read")
    path.write_bytes(content)
    resumed = resume(tmp_path / "run").folder
    assert whole is not None
    assert resumed is not None
    one, two = (read_state(folder / "checkpoints" / "last.pt") for folder in (whole, resumed))
    assert one["step"] == two["step"] == 8
    assert one["model"].keys() == two["model"].keys()
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    assert (whole / "metrics.jsonl").read_text() == (resumed / "metrics.jsonl").read_text()
