"""What the report shows of the layers' ranks, drawn on matplotlib axes that the caller made."""

from collections.abc import Mapping, Sequence
from typing import Any

_FEW = 6  # lines that can be told apart by colour

Series = tuple[Sequence[int], Sequence[float]]


def draw_layers(axes: Any, ranks: Mapping[str, Series]) -> None:
    """Draw one line per layer over steps; many layers are coloured from the first (blue) to the
    last (orange).

    Args:
        axes: matplotlib axes.
        ranks: steps and effective ranks of each layer, in the order of the model.
    """
    few = len(ranks) <= _FEW
    for i, (name, (steps, values)) in enumerate(ranks.items()):
        share = i / max(1, len(ranks) - 1)
        # The legend of many layers names the two ends of the scale.
        named = few or share in (0, 1)
        color = f"C{i}" if few else _between(share)
        marker = "o" if len(steps) < 30 else None
        axes.plot(
            steps, values, color=color, marker=marker, linewidth=1.1, label=name if named else None
        )
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("step")
    axes.set_ylabel("effective rank, share")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        borderaxespad=0,
        borderpad=0.2,
        frameon=False,
    )


def rank_table(
    ranks: Mapping[str, Sequence[float]], changed: Mapping[str, Sequence[float]]
) -> list[list[str]]:
    """Return first and last effective rank and share of changed singular values per layer, a
    header first.
    """
    rows = [["layer", "first rank", "last rank", "changed first", "changed last"]]
    for name, values in ranks.items():
        shares = changed[name]
        rows.append(
            [name, f"{values[0]:.3f}", f"{values[-1]:.3f}", f"{shares[0]:.1%}", f"{shares[-1]:.1%}"]
        )
    return rows


def _between(share: float) -> tuple[float, float, float]:
    low, high = (0.29, 0.43, 0.88), (0.93, 0.54, 0.23)
    red, green, blue = (a + share * (b - a) for a, b in zip(low, high, strict=True))
    return red, green, blue
