"""What the stages of a job found out, as the store keeps it: read where a manifest vouches for it, and checked."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dmqbench.config.names import FINDINGS
from dmqbench.results.figure import Figure
from dmqbench.results.result import Result
from dmqbench.store.artifact import StoreError
from dmqbench.store.artifacts import Store
from dmqbench.store.files import load_json
from dmqbench.store.manifest import Manifest, Verifier

Figures = Mapping[str, Figure]
"""By the key under which the page or a file name knows them."""


class StageFindings:
    """What one ``stage`` found out; a frozen dataclass for each stage, with what is shown of it."""

    stage: ClassVar[str]

    @classmethod
    def from_json(cls: "type[F]", record: Any) -> "F":
        """Return what ``findings.json`` holds.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: the file is damaged; the text says where.
        """
        raise NotImplementedError

    @property
    def figures(self) -> Figures:
        """What the page shows of one job."""
        return {}

    @property
    def layer_figures(self) -> Figures:
        """What the page shows of one layer at a time, by its name."""
        return {}

    @property
    def pictures(self) -> Figures:
        """What is drawn of the first job that has it."""
        return self.figures

    def boundaries(self, calls: int) -> list[int] | None:
        """Return the states, of T+1 around T ``calls``, between groups of calls over which the stage calibrates.

        None of a stage that calibrates single calls; empty where it was calibrated for another number of them.
        """
        return None


F = TypeVar("F", bound=StageFindings)


class FindingsReader:
    """Reads the findings of a store's jobs; those of a stage that several jobs share are read once."""

    def __init__(self, root: Path) -> None:
        self._store, self._verifier = Store(root), Verifier()
        self._known: dict[tuple[str, str], StageFindings | str | None] = {}

    def of(self, row: Result, kind: type[F]) -> F | None:
        """Return what the store holds of a job's stage; None where it has none, or what it has is damaged."""
        findings = self._found(row, kind)
        return findings if isinstance(findings, kind) else None

    def problem(self, row: Result, kind: type[StageFindings]) -> str:
        """Return one line on what is damaged of a job's stage, or ""; no findings, or none any more, are no problem."""
        findings = self._found(row, kind)
        return findings if isinstance(findings, str) else ""

    def _found(self, row: Result, kind: type[StageFindings]) -> StageFindings | str | None:
        if row.stages is None:
            return "no findings: the list of stages is damaged"
        id = dict(row.stages).get(kind.stage)
        if id is None:
            return None
        if (kind.stage, id) not in self._known:
            self._known[kind.stage, id] = self._read(kind, id)
        return self._known[kind.stage, id]

    def _read(self, kind: type[StageFindings], id: str) -> StageFindings | str | None:
        """The findings, None if there are none, or one line on why they cannot be shown."""
        try:
            folder = self._store.path("quantized", id)
            try:
                manifest = Manifest.load(folder, "quantized", id)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if FINDINGS not in manifest.files:
                return None
            problem = self._verifier.problem(folder, FINDINGS, manifest.files[FINDINGS])
            if problem is not None:
                raise ValueError(f"the file {problem}")
            return kind.from_json(load_json(folder / FINDINGS))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StoreError) as error:
            return f"no findings of {kind.stage}: damaged ({type(error).__name__}: {error})"


def numbers(name: str, values: Sequence[Any], length: int | None = None) -> tuple[float, ...]:
    """Return ``values``, or raise ``ValueError`` unless they are ``length`` finite numbers ≥ 0."""
    if length is not None and len(values) != length:
        raise ValueError(f"{name}: {len(values)} numbers instead of {length}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name} holds {value!r:.40}, which is no number ≥ 0")
    return tuple(values)


def number(name: str, value: Any) -> float:
    [checked] = numbers(name, [value])
    return checked


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return ``value``, or raise ``ValueError`` unless it is a whole number from ``least`` to ``most``."""
    if type(value) is not int or (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(f"{name} is {value!r:.40}, which is no whole number that it may be")
    return value


def words(name: str, value: Any) -> str:
    """Return ``value``, or raise ``ValueError`` unless it is text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.40}, which is no text")
    return value
