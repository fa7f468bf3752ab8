"""One wandb run that follows one part of a record."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from dmqbench.store.artifacts import Store
from dmqbench.store.files import json_text
from dmqbench.store.manifest import Manifest
from dmqbench.tracking.record import About, Reader, plain, redact
from dmqbench.tracking.wandb_client import Mode, one_line, project_name, wandb, within
from dmqbench.tracking.wandb_rows import axes_of, flat, key, points_of

log = logging.getLogger(__name__)

UPLOADED_BYTES = 16 * 2**20
"""Files of an artifact up to this size are uploaded, of larger ones the hash alone."""

_START_S = 15


@final
class WandbRun:
    """A wandb run that follows one part of a record; whatever goes wrong is raised.

    The n-th row that the part's events make is step n of the run's history, whoever mirrors it and when: rows that
    the run has already are passed over. So a run that was cut off can be completed, and nothing is doubled.
    """

    def __init__(self, about: About, record: Path, root: Path, directory: Path, mode: Mode, finish_s: int) -> None:
        """``root`` is the run store, ``directory`` where wandb may write; start with what the record holds so far."""
        self.about = about
        self.root = root
        self.online = mode == "online"
        self.rows = 0
        """Rows of the record so far, old and new."""
        self._axes: set[tuple[str, str]] = set()
        self._wandb = wandb()
        directory.mkdir(parents=True, exist_ok=True)
        self._run = self._start(directory, mode, finish_s)
        self._reader = Reader(record)

    def _start(self, directory: Path, mode: Mode, finish_s: int) -> Any:
        about = self.about
        config = redact(plain({**about.config, "ids": about.ids}))
        return self._wandb.init(
            project=project_name(),
            id=f"{about.job}-{about.part}",
            name=" ".join([*about.tags, about.part]),
            group=about.job,
            job_type=about.part,
            tags=about.tags,
            config=config,
            dir=str(directory),
            mode=mode,
            # With any other choice a run that was left open would swallow this one's data.
            reinit="create_new",
            resume="allow" if self.online else None,
            settings=self._wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                # What they would send, command line and folders, is nobody's business and may hold a secret.
                x_disable_meta=True,
                disable_git=True,
                program="dmqbench",
                x_save_requirements=False,
                init_timeout=_START_S,
                finish_timeout=finish_s,
                finish_timeout_raises=True,
            ),
        )

    @property
    def location(self) -> str:
        """Where the run can be looked at, an address or a folder."""
        return self._run.url if self.online else str(Path(self._run.dir).parent)

    @property
    def place(self) -> tuple[str, str]:
        """Its (entity, project)."""
        return self._run.entity, self._run.project

    @property
    def old_rows(self) -> int:
        """Rows that the run had when it was resumed."""
        return self._run.starting_step

    def follow(self) -> None:
        """Mirror the part's events that have come since the last call."""
        for event in self._reader.new():
            if event.get("part") == self.about.part:
                self._show(event)

    def settle(self, seconds: float) -> None:
        """Wait for uploads of files, no longer than ``seconds``."""
        deadline = time.monotonic() + seconds
        while self.online and time.monotonic() < deadline and self._run.status().sync_items_pending:
            time.sleep(0.1)

    def finish(self, exit_code: int) -> None:
        self._reader.close()
        self._run.finish(exit_code=exit_code)

    def _show(self, event: Mapping[str, Any]) -> None:
        name = key(event.get("name", ""))
        match event["event"]:
            case "summary":
                self._run.summary.update(flat(event["values"]))
            case "artifact":
                self._link(event)
            case "end":
                pass
            case "image":
                self._row(lambda: self._image(name, event))
            case "table":
                self._row(lambda: {name: self._wandb.Table(columns=event["columns"], data=event["rows"])})
            case "histogram":
                bins = (event["counts"], event["edges"])
                self._row(lambda: {name: self._wandb.Histogram(np_histogram=bins)})
            case _:
                axes, points = axes_of(event), points_of(event)
                if points and axes and axes not in self._axes:
                    self._axes.add(axes)
                    self._run.define_metric(axes[0], step_metric=axes[1])
                for point in points:
                    self._row(lambda values=point: values)

    def _row(self, make: Callable[[], Mapping[str, Any]]) -> None:
        number, self.rows = self.rows, self.rows + 1
        if number >= self.old_rows:
            self._run.log(make(), step=number, commit=True)

    def _image(self, name: str, event: Mapping[str, Any]) -> dict[str, Any]:
        path = (self.root / event["path"]).resolve()
        # A record may come from elsewhere, and must not make anyone upload other files of theirs.
        if path.suffix != ".png" or not path.is_relative_to(self.root.resolve()) or not path.is_file():
            log.warning("%s: no picture %s in the run store", event["name"], event["path"])
            return {}
        return {name: self._wandb.Image(str(path), caption=event["caption"] or None)}

    def _link(self, event: Mapping[str, Any]) -> None:
        """Log a quantized model, or declare that the run uses it; without a network only the summary says so."""
        name = f"quantized-{event['id']}"
        self._run.summary.update({key("quantized"): name})
        if event["used"] and not self.online:
            return  # wandb looks up what is used on the server: the push of this record does that
        try:
            artifact = self._artifact(name, event)
            within(_START_S, lambda: (self._run.use_artifact if event["used"] else self._run.log_artifact)(artifact))
        except Exception as error:  # the run is worth having without it
            log.warning("wandb has no artifact %s (%s)", name, one_line(error))

    def _artifact(self, name: str, event: Mapping[str, Any]) -> Any:
        """The same content wherever it is made, so that all runs name one version."""
        folder = Store(self.root).path("quantized", event["id"])
        files = Manifest.load(folder, "quantized", event["id"]).files
        artifact = self._wandb.Artifact(name, type="quantized", metadata={"id": event["id"], **event["facts"]})
        with artifact.new_file("files.json") as file:
            file.write(json_text({name: asdict(entry) for name, entry in files.items()}))
        for file, entry in sorted(files.items()):
            if entry.bytes <= UPLOADED_BYTES:
                artifact.add_file(str(folder / file), name=file)
        return artifact
