"""Run as a script on each rank by test_timm: train a converted model under
DistributedDataParallel.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainkit_plugins.batch_norm import convert_batch_norm


def main(folder: Path) -> None:
    """Take two steps on this rank's own data and write down what it ends with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    )
    convert_batch_norm(net, ghost_size=2, example_weight=0.1)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(2):
        model(torch.randn(6, 3, 6, 6, generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(net.state_dict(), folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
