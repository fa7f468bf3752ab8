"""The run store: artifacts named by what determines them, made once, whole or absent, verified when read."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from dmqbench.store.artifact import (
    NEXT,
    Artifact,
    Checked,
    Inspection,
    StoreError,
    own_file,
    rename_durably,
    seal,
    tidy,
)
from dmqbench.store.files import exclusive, replacing, safe_name, save_atomic, sweep_temporary
from dmqbench.store.manifest import MANIFEST, Entry, Manifest, Verifier, behind_link

log = logging.getLogger(__name__)

KINDS = ("trajectories", "quantized", "samples", "features", "embeddings", "anatomy", "result")
GROWING = frozenset({"samples", "features", "embeddings"})
"""Kinds made of independent files, each worth keeping when another one is damaged."""

_ID = re.compile(r"[0-9a-f]{16}")


def store_root(named: str | os.PathLike[str] | None = None) -> Path:
    """Return the whole path of a run store: as ``named``, otherwise ``DMQBENCH_RUNS``, otherwise ``runs`` here."""
    return Path(named or os.environ.get("DMQBENCH_RUNS") or "runs").expanduser().absolute()


class Store:
    """Artifacts at ``root/{kind}/{id}/``; what is under way is in ``.work/``, what is damaged in ``.aside/``.

    An id is 16 lower-case hexadecimal digits. Nothing is created before something is written: a finished
    store can be read where it cannot be written. A file is hashed once per ``Store`` unless it changes.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self._verifier = Verifier()

    def path(self, kind: str, id: str) -> Path:
        """Folder of an artifact, there or not.

        Raises:
            ValueError: an unknown kind or a malformed id.
            StoreError: the folder is a link that leaves the store.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}: allowed are {', '.join(KINDS)}")
        folder = self.root / kind / _checked_id(id)
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.root)):
            raise StoreError(f"{folder} is a link that leaves the run store")
        return folder

    @property
    def work_area(self) -> Path:
        """Folder for what is under way."""
        return self.root / ".work"

    def work(self, id: str) -> Path:
        """Folder for what is under way on ``id``, created; it survives a kill and goes with publishing."""
        folder = self._work_path(id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def ids(self, kind: str) -> list[str]:
        """Ids of one kind that have a manifest, sorted; not verified."""
        folder = self.path(kind, "0" * 16).parent
        return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}") if _ID.fullmatch(path.parent.name))

    def check_writable(self) -> None:
        """Raise StoreError unless files can be made, locked and removed below the root."""
        try:
            with exclusive(self.work_area / f"probe-{os.getpid()}.lock"):
                pass
        except OSError as error:
            raise StoreError(
                f"the run store {self.root} cannot be written ({error.strerror}): "
                "choose another with store.root=... or DMQBENCH_RUNS"
            ) from None

    @contextmanager
    def lock(
        self, kind: str, id: str, part: str | None = None, on_wait: Callable[[str], None] = log.warning
    ) -> Iterator[None]:
        """Be the only one who makes this artifact, or this part of a growing one, among all processes.

        ``on_wait`` gets one line before the wait begins. Leftovers of killed makers are swept when the whole
        artifact is locked. Not reentrant. Look into the store again inside: another job may have made it.
        """
        folder = self.path(kind, id)
        name = "-".join([kind, id] + ([] if part is None else [safe_name(part)]))
        message = f"waiting for another job that makes {kind} {id}" + (f", {part}" if part else "")
        with exclusive(self.work_area / f"{name}.lock", lambda: on_wait(message)):
            if part is None:
                with self._editing(kind, id):
                    tidy(folder)
                sweep_temporary(self._work_path(id))
                if kind not in GROWING and (folder / MANIFEST).exists():
                    shutil.rmtree(self._work_path(id), ignore_errors=True)
            yield

    def verified(self, kind: str, id: str) -> Artifact | None:
        """The artifact if it is there and every file has its recorded hash.

        A damaged artifact is moved to ``.aside/`` with a warning and counts as absent, so that it is made
        again; of a growing one, only the damaged files are moved.

        Raises:
            StoreError: it is damaged and cannot be moved, because the store is read-only.
        """
        inspection = self._inspect(kind, id)
        if inspection is None:
            return None
        if inspection.manifest is not None and not inspection.problems:
            return Artifact(self.path(kind, id), inspection.manifest)
        # Another process may just be replacing these files: what is still wrong under its lock is damage.
        try:
            with self._editing(kind, id):
                return self._settle(kind, id)
        except OSError as error:
            what = f"{kind} {id} in {self.root} is damaged and cannot be put aside"
            raise StoreError(f"{what} ({error.strerror})") from None

    def verified_files(self, kind: str, id: str) -> dict[str, Path]:
        """Paths of the verified files of an artifact by name; empty if it is absent."""
        artifact = self.verified(kind, id)
        return {} if artifact is None else artifact.files

    def publish(self, kind: str, id: str, folder: Path, facts: Mapping[str, Any]) -> Artifact:
        """Make ``folder``, which is ``work(id)`` or lies in it, the artifact, and remove ``work(id)``.

        The folder is renamed into place when its files and then its manifest are on disk. If another process
        was first, its artifact stays and is returned.

        Raises:
            ValueError: the folder is elsewhere, empty, or holds links, deeper folders or unsafe names.
        """
        target, work = self.path(kind, id), self._work_path(id)
        if not folder.resolve().is_relative_to(work.resolve()):
            raise ValueError(f"{folder} is not in the work area of {id}")
        manifest = Manifest(kind, id, seal(folder), facts)
        save_atomic(folder / MANIFEST, manifest.dump())
        with self._editing(kind, id):
            first = self._settle(kind, id)
            if first is None:
                if target.exists():
                    self._put_aside(target, kind, id, "it has no manifest")
                rename_durably(folder, target)
            else:
                log.info("%s %s was made by another job meanwhile", kind, id)
        shutil.rmtree(work, ignore_errors=True)
        return first or Artifact(target, manifest)

    def append_file(self, kind: str, id: str, name: str, write: Callable[[Path], object]) -> Path:
        """Add one file to a growing artifact; a killed process loses no more than this file.

        ``write(path)`` writes it, with others kept out: compute before. If ``name`` is there and verified, it
        stays and ``write`` is not called.
        """
        folder = self.path(kind, id)
        target = own_file(folder, name)
        with self._editing(kind, id):
            manifest = self._readable_manifest(kind, id) or Manifest(kind, id)
            files = dict(manifest.files)
            if name in files:
                problem = self._verifier.problem(folder, name, files[name])
                if problem is None:
                    return target
                self._put_aside_file(kind, id, name, problem)
            with replacing(target) as temporary:
                write(temporary)
            files[name] = Entry.of(target)
            save_atomic(folder / MANIFEST, Manifest(kind, id, files, manifest.facts).dump())
        return target

    def replace_files(
        self, kind: str, id: str, files: Mapping[str, bytes | str], facts: Mapping[str, Any] | None = None
    ) -> Artifact:
        """Write ``files`` into an artifact, new or finished, all or none of them; its other files stay.

        They are first written aside with their manifest, and then moved one by one: who comes after a kill in
        between finishes the move. ``facts`` replace the recorded ones unless None.
        """
        folder = self.path(kind, id)
        for name in files:
            own_file(folder, name)
        with self._editing(kind, id):
            before = self._settle(kind, id)
            manifest = before.manifest if before is not None else Manifest(kind, id)
            for name, content in files.items():
                save_atomic(folder / NEXT / name, content)
            entries = {name: Entry.of(folder / NEXT / name) for name in files}
            after = Manifest(kind, id, {**manifest.files, **entries}, manifest.facts if facts is None else facts)
            save_atomic(folder / NEXT / MANIFEST, after.dump())
            tidy(folder)
        return Artifact(folder, after)

    def verify_all(self) -> Iterator[Checked]:
        """Inspect every artifact that has a manifest, and move nothing."""
        for kind in KINDS:
            for id in self.ids(kind):
                inspection = self._inspect(kind, id)
                if inspection is not None:
                    problems = tuple(f"{name} {problem}" for name, problem in inspection.problems.items())
                    yield Checked(kind, id, problems)

    def _work_path(self, id: str) -> Path:
        return self.work_area / _checked_id(id)

    def _editing(self, kind: str, id: str) -> AbstractContextManager[None]:
        """The short lock around every change of a finished folder; a maker's lock may be held around it."""
        return exclusive(self.work_area / f"{kind}-{id}.edit.lock")

    def _inspect(self, kind: str, id: str) -> Inspection | None:
        """What is in the folder now; None if there is no manifest and none about to be put in place."""
        folder = self.path(kind, id)
        try:
            manifest = Manifest.load(folder, kind, id)
        except (FileNotFoundError, NotADirectoryError):
            unfinished = (folder / NEXT / MANIFEST).exists()
            return Inspection(None, {MANIFEST: "is not in place yet"}) if unfinished else None
        except (OSError, ValueError) as error:
            return Inspection(None, {MANIFEST: str(error)})
        problems = {name: self._verifier.problem(folder, name, entry) for name, entry in manifest.files.items()}
        return Inspection(manifest, {name: problem for name, problem in problems.items() if problem is not None})

    def _settle(self, kind: str, id: str) -> Artifact | None:
        """Finish or put aside what is not whole; return what is then there; under the editing lock."""
        folder = self.path(kind, id)
        tidy(folder)
        inspection = self._inspect(kind, id)
        if inspection is None:
            return None
        manifest = inspection.manifest
        if manifest is not None and not inspection.problems:
            return Artifact(folder, manifest)
        if manifest is None or kind not in GROWING:
            name, problem = next(iter(inspection.problems.items()))
            self._put_aside(folder, kind, id, f"{name} {problem}")
            return None
        kept = {name: entry for name, entry in manifest.files.items() if name not in inspection.problems}
        for name, problem in inspection.problems.items():
            self._put_aside_file(kind, id, name, problem)
        manifest = Manifest(kind, id, kept, manifest.facts)
        save_atomic(folder / MANIFEST, manifest.dump())
        return Artifact(folder, manifest)

    def _readable_manifest(self, kind: str, id: str) -> Manifest | None:
        """The manifest alone, files unverified: adding one to many must not cost reading them all."""
        folder = self.path(kind, id)
        tidy(folder)
        try:
            return Manifest.load(folder, kind, id)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self._put_aside(folder, kind, id, f"{MANIFEST} {error}")
            return None

    def _put_aside(self, folder: Path, kind: str, id: str, why: str) -> None:
        target = self._free_aside(kind, id)
        rename_durably(folder, target)
        log.warning("%s %s is damaged (%s): moved to %s, to be made again", kind, id, why, target)

    def _put_aside_file(self, kind: str, id: str, name: str, problem: str) -> None:
        folder = self.path(kind, id)
        moved = name.split("/")[0] if behind_link(folder, name) else name
        if os.path.lexists(folder / moved):
            rename_durably(folder / moved, self._free_aside(kind, id) / moved)
        log.warning("%s of %s %s %s: put aside, to be made again", name, kind, id, problem)

    def _free_aside(self, kind: str, id: str) -> Path:
        targets = (self.root / ".aside" / f"{kind}-{id}-{number}" for number in count(1))
        return next(target for target in targets if not target.exists())


def _checked_id(id: str) -> str:
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise ValueError(f"{ascii(id)[:60]} is not an id: 16 lower-case hexadecimal digits")
    return safe_name(id)
