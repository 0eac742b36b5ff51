"""The exposed batch norms of every timm model that has a batch norm, at its default input size,
without weights.

Run: python benchmarks/batch_norm_exposure.py [FILE] [--models 'resnet*']     about 8 minutes for
    all

One JSON line per model goes to FILE.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import timm
import torch
from trainkit_plugins.batch_norm.norm_decay.exposure import exposed_norms, is_batch_norm, is_norm


def main() -> None:
    """Walk every model; print a line per family and the totals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--models", default="*", help="a wildcard for timm.list_models")
    options = parser.parse_args()
    file = options.file
    rows, failed, seconds, lines = [], [], 0.0, ""
    for name in timm.list_models(options.models):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=10)
        norms = sum(is_batch_norm(module) for module in model.modules())
        if not norms:
            continue
        start = time.perf_counter()
        try:
            exposed = exposed_norms(model)
        except ValueError as error:
            failed.append(f"{name}: {error}")
            continue
        seconds += time.perf_counter() - start
        behind = len(exposed_norms(model, blocking=is_norm))
        family = type(model).__module__.rpartition(".")[2]
        rows.append(
            {
                "model": name,
                "family": family,
                "norms": norms,
                "exposed": len(exposed),
                "any_norm_blocks": behind,
            }
        )
        if file is not None:
            lines += json.dumps(rows[-1] | {"names": exposed}) + "\n"
            file.write_text(lines)
    families = defaultdict(list)
    for row in rows:
        families[row["family"]].append(row)
    print(f"{'family':28}{'models':>7}{'norms':>8}{'exposed':>9}{'where any norm blocks':>23}")
    for family, own in sorted(families.items()):
        counts = [sum(row[key] for row in own) for key in ("norms", "exposed", "any_norm_blocks")]
        print(f"{family:28}{len(own):7}{counts[0]:8}{counts[1]:9}{counts[2]:23}")
    counts = [sum(row[key] for row in rows) for key in ("norms", "exposed", "any_norm_blocks")]
    print(f"{'all':28}{len(rows):7}{counts[0]:8}{counts[1]:9}{counts[2]:23}")
    one, none = (sum(row["exposed"] == count for row in rows) for count in (1, 0))
    print(f"exactly one exposed: {one} models; none: {none}")
    print(
        f"{seconds / max(1, len(rows)):.2f} s a model; failed: {len(failed)}", *failed, sep="\n  "
    )


if __name__ == "__main__":
    main()
