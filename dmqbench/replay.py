"""Uploading afterwards what the records of a run store hold: runs that were offline, cut off or not mirrored at all."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dmqbench.record import About, abouts_of, exit_code
from dmqbench.tracking import Mode, WandbRun

_UPLOAD_S = 60


@dataclass(frozen=True)
class Replayed:
    """One run after a replay: ``sent`` of its ``rows`` were new to it."""

    about: About
    location: str
    place: tuple[str, str]
    rows: int
    sent: int


def replay(record: Path, root: Path, mode: Mode = "online", directory: Path | None = None) -> list[Replayed]:
    """Mirror a finished record of the run store ``root`` once more; a run that has it all stays as it is.

    ``directory`` is where wandb may write, otherwise a temporary folder. Whatever goes wrong is raised.
    """
    done = []
    for about in abouts_of(record):
        with TemporaryDirectory(prefix="dmqbench-") as temporary:
            run = WandbRun(about, record, root, directory or Path(temporary), mode, _UPLOAD_S)
            try:
                run.follow()
            except BaseException:
                run.finish(1)
                raise
            sent = max(0, run.rows - run.old_rows)
            done.append(Replayed(about, run.location, run.place, run.rows, sent))
            run.finish(exit_code(record, about.part))
    return done
