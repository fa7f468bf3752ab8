"""The run of a stage: one Lightning ``fit``, quiet, with a meter that moves on."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from dmqbench.calibration.stage import Stage
from dmqbench.quant.modes import undisturbed
from dmqbench.tracking.progress import Meter


def run_stage(stage: Stage, accelerator: str, callbacks: Sequence[pl.Callback]) -> None:
    """Run a stage, from where ``UnitCheckpoint.resume`` set it; its outcome is ``stage.state()``.

    Raises:
        CalibrationDiverged: a loss is not finite.
        KeyboardInterrupt: the user or a signal stopped it; finished units are kept by the checkpoint.
    """
    remaining = len(stage.units()) - stage.first_unit
    if remaining <= 0:
        return
    with _quiet_lightning(), undisturbed(stage.bench.device):
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=remaining,
            logger=False,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            callbacks=list(callbacks),
        )
        try:
            trainer.fit(stage)
        except SystemExit:  # Lightning turns Ctrl-C into an exit; the caller decides what a stop means
            raise KeyboardInterrupt from None
        finally:
            # They and the stage hold each other, and with them what the last unit was trained with.
            vars(trainer.strategy).clear()
            vars(trainer).clear()
            stage.trainer = None


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep off the screen what Lightning advertises, and its advice on what stages do without."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            yield
    finally:
        logger.setLevel(level)


class UnitProgress(pl.Callback):
    """Moves a meter on within every unit of a stage, and after it."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
        assert isinstance(module, Stage)
        self.meter.move(min(0.99, module.iteration / module.iterations(module.unit)), _text_of(trainer, module))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Stage)
        self.meter.advance(_text_of(trainer, module))


def _text_of(trainer: pl.Trainer, stage: Stage) -> str:
    loss = trainer.callback_metrics.get("loss")
    return stage.unit + ("" if loss is None else f"  loss {float(loss):.3g}")
