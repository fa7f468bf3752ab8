"""Run every benchmark in turn, each in a process of its own."""

import subprocess
import sys

BENCHMARKS = (
    "commands",
    "frozen_sampling",
    "range_search",
    "stages",
    "equivalent_scaling",
    "multi_step",
    "mixed_precision",
    "evaluation",
    "tracking",
    "reports",
)

for name in BENCHMARKS:
    print(f"\n## {name}\n", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
