"""What the report shows of a training that starts in a local minimum, drawn on axes that the
caller made.
"""

from collections.abc import Sequence
from typing import Any


def draw_losses(axes: Any, steps: Sequence[int], losses: Sequence[float], affine: float) -> None:
    """Draw the training loss over steps, and a line at that of the affine model.

    Args:
        axes: matplotlib axes.
        steps: steps [n].
        losses: loss on all training examples [n].
        affine: loss of the affine model on them.
    """
    axes.plot(steps, losses, color="C0", marker="o" if len(steps) < 30 else None, label="network")
    axes.axhline(
        affine, color="C2", linestyle=(0, (4, 3)), linewidth=1, label=f"affine model {affine:.5g}"
    )
    # From zero, or a loss that stays where it is would look like one that moves.
    axes.set_ylim(0, 1.1 * max(affine, *losses))
    axes.set_xlabel("step")
    axes.set_ylabel("loss on the training data")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        borderaxespad=0,
        borderpad=0.2,
        frameon=False,
    )


def draw_active(axes: Any, steps: Sequence[int], active: Sequence[float]) -> None:
    """Draw the share of hidden values that are positive: while it is 1 the network is affine on
    the training data.
    """
    axes.plot(steps, active, color="C1", marker="o" if len(steps) < 30 else None)
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.set_xlabel("step")
    axes.set_ylabel("active hidden units")
