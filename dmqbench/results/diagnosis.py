"""Errors per step and layer that lie beside a result, checked when they are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmqbench.config.names import DIAGNOSIS, DIAGNOSIS_VERSION
from dmqbench.results.result import Result, printable
from dmqbench.store.files import load_json

Diagnosis = Mapping[str, Any]


def diagnosis_of(row: Result) -> Diagnosis | str:
    """Return the diagnosis beside a result, or one line that says why there is none."""
    try:
        diagnosis = load_diagnosis(row.folder)
        if diagnosis is None:
            return f"no diagnosis: {printable(row.undiagnosed or 'this job was run without one')}"
        _check(diagnosis)
        return diagnosis
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no diagnosis: the file is damaged ({type(error).__name__}: {error})"


def _check(diagnosis: Diagnosis) -> None:
    """Raise ``ValueError`` unless all lengths fit together and every number is one."""
    steps, calls = diagnosis["steps"], len(diagnosis["timesteps"])
    lengths = {"local": calls, "injected": calls, "accumulated": calls + 1, "shift": calls + 1}
    for name, length in lengths.items():
        _check_numbers(name, steps[name], length)
    if not all(value is None or isinstance(value, int | float) for value in diagnosis["proxies"].values()):
        raise ValueError("proxies are not numbers")
    if diagnosis["layers"]:
        _check_layers(diagnosis["layers"], calls)


def _check_layers(layers: Mapping[str, Any], calls: int) -> None:
    count = len(layers["names"])
    if len(layers["error"]) != count or len(layers["skip"]) != count:
        raise ValueError("names and errors of the layers do not fit together")
    tokens = layers.get("tokens", (None,) * count)
    if len(tokens) != count or not {*tokens} <= {None, "image", "text", "both"}:
        raise ValueError("the layers' tokens do not fit their names")
    if not all(isinstance(call, int) and 0 <= call < calls for call in layers["calls"]):
        raise ValueError("layers name calls that are not there")
    for row in layers["error"]:
        _check_numbers("error of a layer", row, len(layers["calls"]))


def _check_numbers(name: str, values: Any, length: int) -> None:
    if len(values) != length or not all(isinstance(value, int | float) and value >= 0 for value in values):
        raise ValueError(f"{name} is not {length} numbers")


def load_diagnosis(folder: Path) -> dict[str, Any] | None:
    """Return the diagnosis beside a result; ``None`` if there is none, or one of another version.

    Raises:
        ValueError: the file is not valid JSON, or not a diagnosis, in one line.
    """
    path = folder / DIAGNOSIS
    if not path.exists():
        return None
    diagnosis = load_json(path)
    if not isinstance(diagnosis, dict) or "version" not in diagnosis:
        raise ValueError(f"{path} is not a diagnosis")
    if diagnosis["version"] != DIAGNOSIS_VERSION:
        return None
    absent = [key for key in ("timesteps", "steps", "layers", "proxies") if key not in diagnosis]
    if absent or not isinstance(diagnosis["proxies"], dict):
        raise ValueError(f"{path} lacks {', '.join(absent or ['proxies'])}")
    return diagnosis


def sound_diagnosis(folder: Path) -> dict[str, Any] | None:
    try:
        return load_diagnosis(folder)
    except (OSError, ValueError):
        return None  # who shows the diagnosis itself says what is wrong with it
