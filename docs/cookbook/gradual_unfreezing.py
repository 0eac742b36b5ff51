"""Gradual unfreezing (Howard & Ruder 2018): fine-tune the last layer first, then one layer more
at a time.
"""

from pydantic import Field
from timm.models import group_parameters

from trainkit import Plugin, hookimpl


class GradualUnfreezing(Plugin):
    """Train the last layers alone at first, and every few epochs one layer more."""

    citation = """@inproceedings{howard2018universal,
  title={Universal Language Model Fine-tuning for Text Classification},
  author={Howard, Jeremy and Ruder, Sebastian},
  booktitle={Annual Meeting of the Association for Computational Linguistics},
  year={2018}
}"""
    first: int = Field(
        1, ge=1, description="layers, as timm counts them, that train from the start"
    )
    every: int = Field(1, ge=1, description="epochs from one layer to the next")

    @hookimpl(wrapper=True)
    def select_trainable(self, model, run):
        """Leave the first layers out."""
        names = yield
        return [name for name in names if name in self._open(model, run.epoch)]

    def _open(self, model, epoch):
        layers = list(group_parameters(model, model.group_matcher()).values())
        return {name for layer in layers[-(self.first + epoch // self.every) :] for name in layer}

    def explain(self, run):
        """Say how many parameters train in each epoch."""
        sizes = {name: p.numel() for name, p in run.model.named_parameters()}
        epochs = range(run.recipe.train.epochs)
        counts = [sum(sizes[name] for name in self._open(run.model, e)) for e in epochs]
        return [f"parameters that train, epoch by epoch: {', '.join(f'{n:,}' for n in counts)}"]
