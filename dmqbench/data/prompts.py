"""Prompts from files, and for each stream its own, so that no prompt is calibrated on and evaluated. Needs no torch.

Sample i of a stream has prompt i mod the number of prompts of that stream.
"""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dmqbench.store.files import json_hash, once_per_state

LARGEST = 512 * 2**20
"""Bytes: the captions of COCO take 92 MB."""
LONGEST = 100_000
"""Characters of a prompt: encoders read a few hundred, and a whole file on one line is a mistake."""
LEAST = 2
"""Prompts of calibration: one is calibrated on, and one chooses between states."""
COLUMNS = ("prompt", "caption", "text")
"""What columns of prompts are called, if nobody says."""

PromptStream = Literal["cal", "val", "eval"]


class PromptError(Exception):
    """A file of prompts cannot be used: its ``path``, and in one line the ``reason``."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


class Prompt(NamedTuple):
    """A prompt, and how its file calls it: the id of a caption, or the number of a line."""

    text: str
    id: int


@dataclass(frozen=True)
class PromptStreams:
    """The prompts of every stream, in the order of its samples; none where no file says any."""

    of: Mapping[PromptStream, tuple[Prompt, ...]]

    @cached_property
    def hashes(self) -> Mapping[PromptStream, str]:
        """Of the texts alone."""
        return {stream: json_hash([prompt.text for prompt in prompts]) for stream, prompts in self.of.items()}

    def texts(self, stream: PromptStream, count: int) -> tuple[str, ...]:
        """Return the prompts of samples 0 to ``count`` − 1."""
        prompts = self.of[stream]
        return tuple(prompts[index % len(prompts)].text for index in range(count))


@once_per_state
def read_streams(evaluation: Path | None, calibration: Path | None, *, column: str | None = None) -> PromptStreams:
    """Return the prompts of all streams from one file or from two.

    One file is divided as images are: every other prompt for ``eval``, half the rest each for ``cal`` and ``val``; one
    that equals an earlier one is left out, or it would be in two streams. With a file for calibration, ``eval`` has all
    of the other, and what it has is left out of calibration. Case and spaces make no other prompt.

    Raises:
        PromptError: a file cannot be read, or has fewer prompts than there are streams to serve.
    """
    held_out = () if evaluation is None else read_prompts(evaluation, column)
    if calibration is None:
        distinct = _without(held_out, ())
        if evaluation is not None and len(distinct) < 2 * LEAST:
            raise PromptError(evaluation, f"holds {len(distinct)} different prompts; streams share none, so at least 4")
        return _streams(distinct[::2], distinct[1::4], distinct[3::4])
    own = _without(read_prompts(calibration, column), held_out)
    if len(own) < LEAST:
        reason = f"holds {len(own)} different prompts that are not of the evaluation; at least {LEAST} are needed"
        raise PromptError(calibration, reason)
    return _streams(held_out, own[::2], own[1::2])


def _streams(*prompts: tuple[Prompt, ...]) -> PromptStreams:
    return PromptStreams(dict(zip(("eval", "cal", "val"), prompts, strict=True)))


def _without(prompts: tuple[Prompt, ...], others: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """The prompts that equal neither an earlier one nor one of the ``others``."""
    seen = {_plain(prompt) for prompt in others}
    kept = []
    for prompt in prompts:
        if (plain := _plain(prompt)) not in seen:
            seen.add(plain)
            kept.append(prompt)
    return tuple(kept)


def _plain(prompt: Prompt) -> str:
    return " ".join(prompt.text.casefold().split())


def read_prompts(path: str | Path, column: str | None = None) -> tuple[Prompt, ...]:
    """Return the prompts of a file, by its suffix.

    ``.json``: a COCO annotation file, of every image the caption with the smallest id, in an order that the ids of the
    images give and that is random to everything else; its first n are a random n of the data set. ``.csv``, ``.tsv``,
    ``.jsonl``: a ``column``. Others are text, one prompt a line.

    Raises:
        PromptError: the file cannot be read, or has no prompts where they should be.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if column is not None and suffix not in _TABLES:
        raise PromptError(path, f"has no columns; those with some end in {', '.join(_TABLES)}")
    try:
        prompts = _read(path, column)
    except OSError as error:
        raise PromptError(path, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise PromptError(path, "is not text in UTF-8") from None
    except (ValueError, csv.Error) as error:
        raise PromptError(path, " ".join(f"cannot be read as {suffix[1:]} ({error})".split())) from None
    if not prompts:
        raise PromptError(path, "holds no prompts")
    for number, prompt in enumerate(prompts, 1):
        if (problem := _problem(prompt.text)) is not None:
            raise PromptError(path, f"has a prompt, number {number}, {problem}")
    return prompts


def _read(path: Path, column: str | None) -> tuple[Prompt, ...]:
    if path.stat().st_size > LARGEST:
        raise PromptError(path, f"is larger than {LARGEST >> 20} MiB")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _captions(path)
    table = _TABLES.get(suffix)
    texts = _lines(path) if table is None else _of_column(path, table(path), column)
    return tuple(Prompt(text, number) for number, text in enumerate(texts))


def _problem(text: str) -> str | None:
    """Return why a prompt is none; of UTF-16 that is read as UTF-8, every other character is NUL."""
    if len(text) > LONGEST:
        return f"of {len(text)} characters: {LONGEST} at most"
    if "\0" in text:
        return "with NUL in it: text in UTF-8 has none"
    return "with half a surrogate pair in it, which no text in UTF-8 has" if _HALVES.search(text) else None


_HALVES = re.compile("[\ud800-\udfff]")


def _lines(path: Path) -> Sequence[str]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() also cuts within prompts
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _captions(path: Path) -> tuple[Prompt, ...]:
    """One caption of every image of a COCO annotation file."""
    annotations = json.loads(path.read_text(encoding="utf-8-sig"))
    try:
        entries = annotations["annotations"]
        listed = sorted((int(each["id"]), int(each["image_id"]), str(each["caption"])) for each in entries)
    except (KeyError, TypeError):
        raise PromptError(path, 'holds no "annotations" with an id, an image_id and a caption, as COCO has') from None
    first = {image: Prompt(" ".join(caption.split()), id) for id, image, caption in reversed(listed)}
    return tuple(first[image] for image in sorted(first, key=_shuffled))


def _shuffled(image: int) -> bytes:
    return hashlib.sha256(f"dmqbench/1 coco {image}".encode()).digest()


Rows = Sequence[Mapping[str, Any]]


def _of_column(path: Path, rows: Rows, column: str | None) -> list[str]:
    there = list(rows[0]) if rows else []
    if column is None:
        found = [name for name in COLUMNS if name in there]
        column = found[0] if found else COLUMNS[0]
    texts = [row.get(column) for row in rows]
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise PromptError(path, f"has no text in column {column} of row {number}; columns: {', '.join(there)}")
    return [text for text in texts if isinstance(text, str)]


def _separated(path: Path, delimiter: str) -> Rows:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter, strict=True))


def _json_lines(path: Path) -> Rows:
    rows = [json.loads(line) for line in _lines(path) if line.strip()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise PromptError(path, f"row {number} is no JSON object")
    return rows


_TABLES: Mapping[str, Callable[[Path], Rows]] = {
    ".csv": partial(_separated, delimiter=","),
    ".tsv": partial(_separated, delimiter="\t"),
    ".jsonl": _json_lines,
}
