"""Time one meta-step of second-order MAML on the few-shot papers' network against other libraries
and the plain loop.

    pip install higher torchopt                # optional; for learn2learn see maml_contenders.py
    python benchmarks/maml.py                  # CPU, two threads
    python benchmarks/maml.py --memory         # how much each contender needs, one process each

5-way tasks of 28x28 images, 15 queries a class, 4 tasks, 5 inner steps, once with 64 filters and 1
shot, once with 32 filters and 5 shots. Every contender computes the same gradient, which is checked
first. The others get the network as one writes it (convolution, batch norm, ReLU, max pooling of
torch.nn); `conv4` is this project's version of the same function, and is given to the plain loop
too, so that one sees which part of the gain comes from where. Contenders take turns, one meta-step
each per round; the table has medians and the median ratio to the plain loop of the same round.
Memory is by how much the resident memory of a process that runs nothing else grew at its peak.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from maml_contenders import PLAIN, Step, check, contenders

SETTINGS = {"64 filters, 1 shot": (64, 1), "32 filters, 5 shots": (32, 5)}


def memory(setting: str, name: str, threads: int) -> float:
    """Return by how many MiB a process grew that runs one contender only."""
    code = [sys.executable, __file__, "--threads", str(threads), "--only", setting, name]
    return float(
        json.loads(
            subprocess.run(code, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
    )


def grown(step: Step) -> float:
    """Run a few meta-steps; return by how many MiB the peak of resident memory exceeds what was
    resident before.
    """
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return (resident("VmHWM") - before) / 1024


def resident(what: str) -> int:
    """Return a line of Linux's account of this process, in KiB; getrusage would count the
    parent's peak as well.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument(
        "--only", nargs=2, metavar=("SETTING", "CONTENDER"), help="measure memory, in this process"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        print(
            json.dumps(
                grown(contenders(*SETTINGS[options.only[0]], options.threads)[options.only[1]][1])
            )
        )
        return
    print(
        f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads, "
        f"{options.rounds} rounds"
    )
    for setting, (channels, shots) in SETTINGS.items():
        print(f"\n{setting}")
        table = contenders(channels, shots, options.threads)
        if options.memory:
            for name in table:
                print(f"  {name:52s} {memory(setting, name, options.threads):6.0f} MiB", flush=True)
            continue
        check(shots, options.threads)
        for _, step in table.values():
            step()
        times: dict[str, list[float]] = {name: [] for name in table}
        for _ in range(options.rounds):
            for name, (_, step) in table.items():
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        for name, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, times[PLAIN], strict=True))
            print(f"  {name:52s} {statistics.median(seconds):6.3f} s   x {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
