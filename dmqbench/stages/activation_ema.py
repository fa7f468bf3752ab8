"""Activation ranges as moving averages of batch ranges, as the published DMQ code (after TFMQ-DM) calibrates them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmqbench.calibration.capture import without_points
from dmqbench.calibration.stage import Workbench
from dmqbench.models.hooks import hooked
from dmqbench.models.portions import WHOLE
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.observers import MovingRange
from dmqbench.quant.quantizer import ActivationQuantizer
from dmqbench.stages.ranges import ActivationPass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How batch ranges are averaged."""

    samples: int
    """Bank points, spread evenly over the network calls."""
    ema_batch: int
    """Bank points of one update; under guidance each counts with and without its condition."""
    momentum: float
    """m, 0 ≤ m < 1."""
    carry: bool
    """Whether a row starts from the state that the row before ended with: the published code never resets its state."""
    skip_part: str
    """``last``: as in the published code, the parts of a split skip input after the first have the range of their last
    batch, whatever the momentum; ``moving``: they are treated alike."""
    later_passes: int = 0
    """Further passes over the points of a row that go on averaging: in the published code ranges move during both
    passes in which the powers of two are voted on. (There the layers of the second have these already.)"""
    later_batch: int = 64
    """Bank points of one update of a later pass."""


class ActivationEma(ActivationPass):
    """Per row of steps and input group: x ← m·x + (1 − m)·new on the smallest and largest value of every batch.

    The first batch sets the range. Rows are passed in the order of the network calls, and activations are quantized
    with the ranges so far, so that later layers see quantized inputs. The range is widened to hold zero, as everywhere
    in this project; the published code does not do that.

    Raises:
        ValueError: a setting is out of range, or no bank point is at the steps of a row.
    """

    name = "activation_ema"
    settings_type = Settings
    settings: Settings

    def __init__(self, bench: Workbench, settings: Settings) -> None:
        super().__init__(bench, settings)
        self.parts = self._parts()
        self.ranges: dict[str, list[MovingRange]] = {}
        self.row = -1

    def _parts(self) -> list[tuple[int, Tensor]]:
        """(row, points) of every update, row after row; a batch has points of one row only."""
        row_of_call = torch.tensor(self.steps.row_of_call or [0] * self.bench.bank.cal.calls)
        rows = row_of_call[self.points % self.bench.bank.cal.calls]
        parts = []
        for row in range(self.steps.rows):
            members = self.points[rows == row]
            if not len(members):
                raise without_points(row)
            passes = [self.settings.ema_batch, *[self.settings.later_batch] * self.settings.later_passes]
            parts += [(row, part) for batch in passes for part in members.split(batch)]
        return parts

    def iterations(self, unit: str) -> int:
        return len(self.parts)

    @torch.no_grad()
    def start_unit(self, unit: str) -> None:
        self.row = -1
        self.ranges = {name: [] for name in self.quantizers}
        for quantizer in self.quantizers.values():
            empty = quantizer.scale.new_full((self.steps.rows, quantizer.groups.count), torch.nan)
            quantizer.set_parameters_(empty, torch.zeros_like(empty), self.steps)
            quantizer.exponent = None  # chosen for another range

    @torch.no_grad()
    def iterate(self, unit: str, iteration: int) -> None:
        row, points = self.parts[iteration]
        if row != self.row and not (self.settings.carry and self.row >= 0):
            self.ranges = {name: self._fresh(quantizer) for name, quantizer in self.quantizers.items()}
        self.row = row
        # A range moves on by what a whole batch holds.
        with hooked(self.quantizers, self._update, pre=True), self.bench.adapter.computing(WHOLE):
            self.run(points)

    def _fresh(self, quantizer: ActivationQuantizer) -> list[MovingRange]:
        """One empty range per input group."""
        momentum = self.settings.momentum
        later = 0.0 if self.settings.skip_part == "last" else momentum
        return [MovingRange(later if group else momentum) for group in range(quantizer.groups.count)]

    def _update(self, name: str, quantizer: ActivationQuantizer, args: tuple[Tensor, ...]) -> None:
        """Take a batch into the row's range just before the quantizer quantizes it."""
        for group, part in enumerate(quantizer.groups.slices):
            piece = args[0].narrow(quantizer.channel_axis, part.start, part.stop - part.start)
            moving = self.ranges[name][group]
            moving.update(piece.reshape(1, -1))
            assert moving.low is not None and moving.high is not None  # update has set them
            scale, zero_point = affine_parameters(moving.low, moving.high, quantizer.levels)
            quantizer.scale[self.row, group] = scale[0]
            quantizer.zero_point[self.row, group] = zero_point[0]

    def finish_unit(self, unit: str) -> dict[str, float]:
        self.ranges = {}
        return self.facts()
