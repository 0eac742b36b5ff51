"""The definition that the module of functions begins with is what its functions compute."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from trainkit_plugins.batch_norm import functional, normalize_blocks


def test_the_definition_in_the_docstring_is_the_function() -> None:
    text = functional.__doc__ or ""
    start = text.index("    for block in")
    loop = textwrap.dedent(text[start : text.index("\n\n", start)])
    space: dict[str, Any] = {}
    names = "x, gamma, beta, n, G, C, S, eps"
    exec(f"def blocks({names}):\n" + textwrap.indent(loop, "    "), space)
    x = torch.randn(8, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gamma, beta = torch.linspace(0.5, 2, 6).double(), torch.linspace(-1, 1, 6).double()
    parts: Iterator[Tensor] = space["blocks"](x, gamma, beta, 4, 3, 6, 5, 1e-3)
    found = normalize_blocks(
        x, gamma, beta, ghost_size=4, channel_groups=3, eps=1e-3, blocks="consecutive"
    )
    torch.testing.assert_close(torch.cat(list(parts)), found.output)
