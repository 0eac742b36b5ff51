"""The papers behind a recipe, as BibTeX."""

from __future__ import annotations

from collections.abc import Sequence

from trainkit.hooks.order import Entry

TIMM = """@misc{rw2019timm,
  author = {Ross Wightman},
  title = {PyTorch Image Models},
  year = {2019},
  doi = {10.5281/zenodo.4414861},
  howpublished = {\\url{https://github.com/huggingface/pytorch-image-models}}
}"""


def citations(entries: Sequence[Entry]) -> str:
    """Return the BibTeX of timm and of every plugin that has a paper, each once, in recipe
    order.
    """
    found = [TIMM, *(entry.plugin.citation.strip() for entry in entries if entry.plugin.citation)]
    return "\n\n".join(dict.fromkeys(found))
