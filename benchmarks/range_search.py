"""Search for the weight ranges with least error: this project's against the published form, one thread.

Run: python -m benchmarks.range_search
"""

import torch
from torch import Tensor

from benchmarks.common import interleaved_seconds
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.observers import mse_search

ROWS, CHANNELS, KERNEL = 512, 512, 3
CANDIDATES, EXPONENT = 80, 2.4
TIMED_ROWS = 64
"""Rows are independent: the published form is timed on these and scaled up to all."""
ROUNDS = 5
TARGET = 3.0


def published_scale(row: Tensor, levels: int) -> Tensor:
    """Q-Diffusion's search for one row: Python visits the candidates, and its caller the rows."""
    top, bottom = row.max(), row.min()
    best, scale = float("inf"), torch.zeros(())
    for i in range(CANDIDATES):
        high, low = top * (1 - 0.01 * i), bottom * (1 - 0.01 * i)
        delta = (high - low) / (levels - 1)
        zero = torch.round(-low / delta)
        codes = torch.clamp(torch.round(row / delta) + zero, 0, levels - 1)
        score = (row - (codes - zero) * delta).abs().pow(EXPONENT).mean()
        if score < best:
            best, scale = score, delta
    return scale


def published_scales(rows: Tensor, levels: int) -> Tensor:
    return torch.stack([published_scale(row, levels) for row in rows])


def row_vectorised_scales(rows: Tensor, levels: int) -> Tensor:
    """The same for all rows at once: Python visits the candidates only."""
    top, bottom = rows.amax(1, keepdim=True), rows.amin(1, keepdim=True)
    best, scales = torch.full_like(top, torch.inf), torch.zeros_like(top)
    for i in range(CANDIDATES):
        high, low = top * (1 - 0.01 * i), bottom * (1 - 0.01 * i)
        delta = (high - low) / (levels - 1)
        zero = torch.round(-low / delta)
        codes = torch.clamp(torch.round(rows / delta) + zero, 0, levels - 1)
        score = (rows - (codes - zero) * delta).abs().pow(EXPONENT).mean(dim=1, keepdim=True)
        better = score < best
        best, scales = torch.where(better, score, best), torch.where(better, delta, scales)
    return scales[:, 0]


def searched_scales(rows: Tensor, levels: int) -> Tensor:
    low, high = mse_search(rows, torch.tensor(levels), candidates=CANDIDATES, exponent=EXPONENT)
    return affine_parameters(low, high, levels)[0]


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, CHANNELS, KERNEL, KERNEL, generator=generator) * 0.02
    rows = weight.flatten(1)
    print(f"Weight {ROWS}×{CHANNELS}×{KERNEL}×{KERNEL}, {CANDIDATES} candidates, exponent {EXPONENT}, 1 thread;")
    print(f"the published form timed on {TIMED_ROWS} of {ROWS} rows and scaled up.\n")
    print("| bits | here, s | published, s | × | vectorised over rows, s | × | largest difference of a scale |")
    print("|---|---|---|---|---|---|---|")
    least = float("inf")
    for bits in (2, 4, 8):
        levels = 2**bits
        seconds = interleaved_seconds(
            {
                "here": lambda levels=levels: searched_scales(rows, levels),
                "published": lambda levels=levels: published_scales(rows[:TIMED_ROWS], levels),
                "rows": lambda levels=levels: row_vectorised_scales(rows, levels),
            },
            ROUNDS,
        )
        here, by_rows = seconds["here"], seconds["rows"]
        published = seconds["published"] * ROWS / TIMED_ROWS
        scales = searched_scales(rows, levels)
        differences = [
            (scales[:TIMED_ROWS] / published_scales(rows[:TIMED_ROWS], levels) - 1).abs().max(),
            (scales / row_vectorised_scales(rows, levels) - 1).abs().max(),
        ]
        least = min(least, published / here)
        print(
            f"| {bits} | {here:.2f} | {published:.2f} | {published / here:.1f} | {by_rows:.2f} "
            f"| {by_rows / here:.1f} | {max(differences):.1e} |"
        )
    print(f"\ntarget: {TARGET} × the published form; {'reached' if least >= TARGET else 'missed'} ({least:.1f})")


if __name__ == "__main__":
    main()
