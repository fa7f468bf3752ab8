"""The checkpoint of a stage: what its finished units have reached, in one file that a killed run goes on from."""

import hashlib
import json
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dmqbench.calibration.stage import Stage
from dmqbench.data.tensor_files import save_tensors
from dmqbench.tracking.stopwatch import Stopwatch

DIGEST = "sha256"

PROGRESS = "progress:"
"""How tensors of a checkpoint begin that are no calibration state."""


class UnitCheckpoint(Checkpoint):
    """Keeps the calibration state after every unit in one file, written atomically.

    The number of finished units travels in the file's own header, so that state and progress cannot part. Lightning
    calls only a ``Checkpoint`` after the module's own hook, which completes the unit; other callbacks come before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        assert isinstance(stage, Stage)
        progress = {
            "units_done": str(stage.first_unit + stage.current_epoch + 1),
            "network_forwards": repr(stage.network_forwards),
            **{name: repr(seconds) for name, seconds in stage.watch.facts.items()},
            "peaks": json.dumps(stage.peaks),
        }
        carried = {PROGRESS + name: value for name, value in stage.progress().items()}
        state = stage.state() | carried
        save_tensors(self.path, state, {**progress, DIGEST: _digest(state, progress)})

    def resume(self, stage: Stage) -> None:
        """Set the network and the stage to where a killed run left them, if it left anything."""
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                progress = file.metadata() or {}
            state = load_file(self.path)
            if progress.pop(DIGEST, None) != _digest(state, progress):
                raise ValueError("its digest differs")
            carried = {name: state.pop(name) for name in list(state) if name.startswith(PROGRESS)}
            stage.load_state_(state)
        except Exception as error:  # a damaged checkpoint costs its units, never the job
            stage.bench.record.log("checkpoint_discarded", stage=stage.name, reason=str(error))
            return
        stage.first_unit = int(progress["units_done"])
        stage.network_forwards = float(progress["network_forwards"])
        stage.watch = Stopwatch(float(progress["seconds"]), float(progress.get("processor_seconds", "nan")))
        stage.peaks = json.loads(progress.get("peaks", "{}"))
        stage.load_progress_({name.removeprefix(PROGRESS): value for name, value in carried.items()})


def _digest(state: dict[str, Tensor], progress: dict[str, str]) -> str:
    """The file format has no checksum of its own: a flipped bit would only show in the samples, or never."""
    digest = hashlib.sha256(json.dumps(progress, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
