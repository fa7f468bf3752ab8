"""The folder of one artifact: its files sealed and hashed, tidied after a kill."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmqbench.store.files import sweep_temporary, sync
from dmqbench.store.manifest import MANIFEST, Entry, Manifest, behind_link, safe_file_name

NEXT = ".next"


class StoreError(Exception):
    """The store cannot be used as asked; one line for the user."""


@dataclass(frozen=True)
class Artifact:
    """A folder whose files were verified."""

    path: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.manifest.facts

    @property
    def files(self) -> dict[str, Path]:
        return {name: self.path / name for name in self.manifest.files}


@dataclass(frozen=True)
class Checked:
    """What ``verify_all`` found out about one artifact: it is whole where there are no problems."""

    kind: str
    id: str
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """``manifest`` is None if it is missing or damaged; ``problems`` maps a file to what is wrong with it."""

    manifest: Manifest | None
    problems: Mapping[str, str]


def own_file(folder: Path, name: str) -> Path:
    """Path of a file about to be written; StoreError if a link would lead it elsewhere."""
    if behind_link(folder, safe_file_name(name)):
        raise StoreError(f"{folder / name} lies behind a link")
    return folder / name


def rename_durably(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)
    sync(target.parent)
    sync(source.parent)


def seal(folder: Path) -> dict[str, Entry]:
    """Force everything in ``folder`` to the disk and hash it; ValueError if it cannot be an artifact."""
    sweep_temporary(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    entries = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is not a plain file")
        if path.is_file():
            entries[safe_file_name(path.relative_to(folder).as_posix())] = Entry.of(path)
        sync(path)
    if not entries:
        raise ValueError(f"{folder} has no files to publish")
    return entries


def tidy(folder: Path) -> None:
    """Sweep leftovers and finish what ``replace_files`` staged, its manifest last; under the editing lock."""
    sweep_temporary(folder)
    staged = folder / NEXT
    if (staged / MANIFEST).exists():
        for path in sorted(staged.rglob("*")):
            name = path.relative_to(staged)
            if path.is_file() and name != Path(MANIFEST):
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(path, folder / name)
                sync((folder / name).parent)
        os.replace(staged / MANIFEST, folder / MANIFEST)
        sync(folder)
    shutil.rmtree(staged, ignore_errors=True)
