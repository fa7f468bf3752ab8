"""Speed and memory, as ratios within one run. ``python -m benchmarks`` runs all; results are in README.md here."""
