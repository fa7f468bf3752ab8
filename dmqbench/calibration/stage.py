"""Stages: calibration as a Lightning training loop over units, resumable to the same bits.

A method is an ordered list of stages. A stage works through its units (a block, a layer, a slice of iterations), one
Lightning epoch per unit and one ``fit`` per stage. What a stage leaves behind is the calibration state of the network,
nothing else.
"""

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from dmqbench.calibration.rows import Shelf
from dmqbench.config.errors import ConfigError
from dmqbench.config.limits import limits_of
from dmqbench.data.bank import TrajectoryBank
from dmqbench.models.absorption import load_state_into_
from dmqbench.models.adapter import Adapter
from dmqbench.models.rollout import Denoising
from dmqbench.models.topology import Topology
from dmqbench.quant.functional import CLIPPINGS
from dmqbench.quant.layers import set_clipping_
from dmqbench.quant.spec import StepGroups
from dmqbench.quant.state import calibration_state
from dmqbench.samplers.plan import SamplerPlan
from dmqbench.tracking.environment import give_back_freed_memory, memory_facts
from dmqbench.tracking.record import curve
from dmqbench.tracking.stopwatch import Stopwatch

MIB = 2**20

HELD_OUT_POINTS = 64
"""Validation points on which a stage measures what it won."""

CURVE_POINTS = 50
"""Losses of a unit that are recorded, evenly spread, the first and the last among them."""

SECONDS_PER_STEP = 0.5
"""Inner iterations run until this has passed, so that Lightning's own cost is small and a signal is still heard."""

SECONDS_WORTH_TIDYING = 1.0
"""After a unit that took longer, freed memory is given back, which takes some milliseconds."""


class CalibrationDiverged(RuntimeError):
    """A loss became infinite or undefined; the state of the last finished unit is kept."""


class Record(Protocol):
    """Where a stage reports; the job's JSONL record."""

    def log(self, event: str, **values: Any) -> None: ...


def curve_iterations(total: int) -> frozenset[int]:
    """The iterations, of ``total``, whose losses are recorded."""
    last = total - 1
    points = min(CURVE_POINTS, total)
    return frozenset(round(point * last / max(1, points - 1)) for point in range(points))


@dataclass(frozen=True)
class Workbench:
    """What a stage works on. The network carries the quantizable layers of the precision plan."""

    denoising: Denoising
    topology: Topology
    bank: TrajectoryBank
    step_groups: StepGroups
    """Which network calls share a row of activation parameters."""
    seed: int
    record: Record
    scratch: Path | None = None
    """A folder for files that are needed while a stage runs; None: the system's own."""

    @property
    def adapter(self) -> Adapter:
        return self.denoising.adapter

    @property
    def sampler(self) -> SamplerPlan:
        return self.denoising.sampler

    @property
    def branches(self) -> int:
        return self.denoising.branches

    @property
    def network(self) -> nn.Module:
        return self.denoising.adapter.network

    @property
    def device(self) -> torch.device:
        return self.denoising.device

    @property
    def shelf(self) -> Shelf:
        """Where what is kept of units lies."""
        return Shelf(self.adapter.portions.moved, self.scratch)


AnyStage = TypeVar("AnyStage", bound="Stage")


@dataclass(frozen=True)
class NoSettings:
    """Of a stage that has none."""


class Stage(pl.LightningModule):
    """One step of a method.

    Subclasses say what the units are, and what is done at the start of one, in each iteration, and at its end. All of
    an iteration's randomness must come from its coordinates (seed, stage, unit, iteration).
    """

    name: ClassVar[str]
    weights_only: ClassVar[bool] = False
    """Whether it leaves activation quantizers untouched; its outcome then serves every activation bit-width."""
    settings_type: ClassVar[type] = NoSettings
    """The frozen dataclass of its settings, which its YAML gives by the names of the fields."""

    def __init__(self, bench: Workbench, settings: Any) -> None:
        """Raise ValueError, one line, where a setting is not what the stage's YAML allows."""
        super().__init__()
        try:
            limits_of(self.name).check({item.name: getattr(settings, item.name) for item in fields(settings)})
        except ConfigError as error:
            raise ValueError(str(error)) from None
        self.settings = settings
        set_clipping_(bench.network, getattr(settings, "clipping", CLIPPINGS[0]))  # not what the stage before had
        self.automatic_optimization = False
        self._bench = (bench,)  # in a tuple: the network must not become a submodule, checkpoints never hold it
        self.first_unit = 0
        self.iteration = 0
        self.losses: dict[int, Tensor] = {}
        """Some losses of the unit in training, by iteration."""
        self.network_forwards = 0.0
        """Cost so far, in full-precision network calls of batch 1; a backward pass counts as two forwards."""
        self.watch = Stopwatch()
        """Time spent so far on finished units, over all runs of the stage; what is no calibration is left out."""
        self.peaks: dict[str, int] = {}
        """Peaks so far, over all runs of the stage: see ``environment.memory_facts``."""

    @classmethod
    def of(cls: type[AnyStage], bench: Workbench, **settings: Any) -> AnyStage:
        """Return the stage with settings by name, as its YAML gives them."""
        return cls(bench, cls.settings_of(settings))

    @classmethod
    def settings_of(cls, values: Mapping[str, Any]) -> Any:
        """Return the settings that a YAML gives.

        Raises:
            ValueError: one is missing, or is none of the fields.
        """
        try:
            return cls.settings_type(**values)
        except TypeError as error:
            raise ValueError(f"stage {cls.name}: its settings are not those of its YAML ({error})") from None

    @property
    def bench(self) -> Workbench:
        return self._bench[0]

    def note_memory(self) -> None:
        """Take the present peaks of memory into ``peaks``."""
        for name, peak in memory_facts(self.bench.device.type).items():
            self.peaks[name] = max(peak, self.peaks.get(name, 0))

    def state(self) -> dict[str, Tensor]:
        """The calibration state that the stage has reached."""
        return calibration_state(self.bench.network, activations=not self.weights_only)

    def load_state_(self, state: dict[str, Tensor]) -> None:
        """Set the network to what ``state`` returned after some unit; ValueError, and no change, if it does not fit."""
        load_state_into_(self.bench.network, state)

    def progress(self) -> dict[str, Tensor]:
        """What the next unit needs beside the calibration state (an optimizer's moments, say); in checkpoints only."""
        return {}

    def load_progress_(self, progress: dict[str, Tensor]) -> None:
        """Set what ``progress`` returned, after ``first_unit`` was set."""

    @classmethod
    def outline_(cls, network: nn.Module, settings: Any) -> str | None:
        """Give an uncalibrated network on the meta device what a stage with these settings leaves beside the quantizers
        of the precision plan, so that the size of its file is known beforehand; most stages leave nothing.

        Returns:
            Why it cannot be known, in a few words; None if it can.
        """
        return None

    @classmethod
    def promised_bits(cls, rows: int, bits: int, settings: Any) -> tuple[int, ...] | None:
        """Return the weight bits of the rows of a layer of ``bits``, where how many rows have which is fixed before
        calibration; None where it is not, as in most stages."""
        return None

    def findings(self) -> dict[str, Any]:
        """Facts for the report, as JSON, of a stage whose units are done; kept beside the state."""
        return {}

    def conclude_(self) -> None:
        """Bring the network into the state that the next stage finds, once ``findings`` were told; most are there."""

    @abstractmethod
    def units(self) -> tuple[str, ...]:
        """Names of the units, in the order in which they are calibrated."""

    @abstractmethod
    def iterations(self, unit: str) -> int:
        """Number of iterations of a unit."""

    def start_unit(self, unit: str) -> None:
        """Prepare a unit."""

    @abstractmethod
    def iterate(self, unit: str, iteration: int) -> Tensor | None:
        """Do one iteration; return its loss, if it has one."""

    def finish_unit(self, unit: str) -> dict[str, float]:
        """Complete a unit; return what is worth recording of it."""
        return {}

    @property
    def unit(self) -> str:
        return self.units()[self.first_unit + self.current_epoch]

    def configure_optimizers(self) -> None:
        """Units make their own optimizers: each trains other parameters."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Ticks(self), batch_size=None)

    def on_train_epoch_start(self) -> None:
        self.iteration = 0
        self.losses = {}
        self.recorded_iterations = curve_iterations(self.iterations(self.unit))
        self.watch.start()
        with torch.enable_grad():
            self.start_unit(self.unit)

    def training_step(self, tick: int) -> None:
        started = time.perf_counter()
        total, loss = self.iterations(self.unit), None
        while self.iteration < total and time.perf_counter() - started < SECONDS_PER_STEP:
            loss = self.iterate(self.unit, self.iteration)
            if loss is not None and self.iteration in self.recorded_iterations:
                self.losses[self.iteration] = loss.detach()
            if loss is not None and not torch.isfinite(loss):
                self._record_losses()
                raise CalibrationDiverged(
                    f"stage {self.name}, unit {self.unit}: loss {float(loss.detach())} at iteration {self.iteration}"
                )
            self.iteration += 1
        if loss is not None:  # not in each iteration: a small one takes less time than Lightning's logging
            self.log("loss", loss.detach(), prog_bar=True)

    def on_train_epoch_end(self) -> None:
        facts = self.finish_unit(self.unit)
        self.watch.stop()
        self.note_memory()
        if time.perf_counter() - self.watch.started[0] > SECONDS_WORTH_TIDYING:
            give_back_freed_memory()
        self._record_losses()
        self.bench.record.log("unit", stage=self.name, unit=self.unit, **facts)

    def _record_losses(self) -> None:
        """Only now, as one event: a unit that is killed is trained again, and would leave two halves of a curve."""
        if self.losses:
            values = [float(loss) for loss in self.losses.values()]
            line = curve(f"loss/{self.name}", "iteration", list(self.losses), {self.unit: values})
            self.bench.record.log("curve", **line)


class _Ticks(IterableDataset):
    """Yields until the stage has done all iterations of its unit."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __iter__(self) -> Iterator[int]:
        total = self.stage.iterations(self.stage.unit)
        while self.stage.iteration < total:
            yield self.stage.iteration


StageFactory = type[Stage]
