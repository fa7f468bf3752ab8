"""What the stages of a job found out, as the store keeps it: read where a manifest vouches for it, and checked.

Imports no torch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from dmqbench.config.schema import FINDINGS
from dmqbench.results.result import Result
from dmqbench.results.studies.colours import BIT_COLOURS
from dmqbench.store.artifacts import Store, StoreError
from dmqbench.store.files import load_json
from dmqbench.store.manifest import Manifest, Verifier

SCALING, POWERS, TRAJECTORY = "equivalent_scaling", "power_of_two_scaling", "trajectory_reconstruction"
ALLOCATION, TUNING = "outlier_allocation", "low_rank_tuning"
"""The stages whose findings are shown."""

CHOSEN_ON = (
    "measured on the validation trajectories, by which calibration over several calls chose its best state; "
    "dots: where its groups of calls begin and end"
)
"""What must be said where such a method's errors stand beside others'."""

Found = Mapping[str, Any]

_FINEST = -16
"""No exponent of a sound file is lower."""
_LARGEST_COSINE = 1 + 1e-6
"""One, and what rounding adds."""


@dataclass(frozen=True)
class Findings:
    """Of one job: what its equivalent scaling, its power-of-two scaling, its calibration over several steps, its
    allocation of bits to rows and its low-rank tuning found, ``None`` where it has none.

    ``problem`` is one line on what is damaged and therefore left out.
    """

    scaling: Found | None = None
    powers: Found | None = None
    trajectory: Found | None = None
    allocation: Found | None = None
    tuning: Found | None = None
    problem: str = ""


class FindingsReader:
    """Reads the findings of a store's jobs; those of a stage that several jobs share are read once."""

    def __init__(self, root: Path) -> None:
        self._store, self._verifier = Store(root), Verifier()
        self._known: dict[tuple[str, str], Found | str | None] = {}

    def of(self, row: Result) -> Findings:
        """Return what the store holds of the job's stages; a stage without findings, or gone, is no problem."""
        if row.stages is None:
            return Findings(problem="no findings: the list of stages is damaged")
        found = {name: self._stage(name, id) for name, id in dict(row.stages).items() if name in _CHECKS}
        problems = [value for value in found.values() if isinstance(value, str)]
        sound = {name: value for name, value in found.items() if not isinstance(value, str)}
        shown = (sound.get(name) for name in (SCALING, POWERS, TRAJECTORY, ALLOCATION, TUNING))
        return Findings(*shown, problem="; ".join(problems))

    def _stage(self, name: str, id: str) -> Found | str | None:
        if (name, id) not in self._known:
            self._known[name, id] = self._read(name, id)
        return self._known[name, id]

    def _read(self, name: str, id: str) -> Found | str | None:
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
            found = load_json(folder / FINDINGS)
            _CHECKS[name](found)
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StoreError) as error:
            return f"no findings of {name}: damaged ({type(error).__name__}: {error})"


def rows_of_steps(powers: Found) -> int:
    """Return how many sets of exponents each layer has: one per step, or one for all."""
    return max((len(layer["agreement"]) for layer in powers["layers"].values()), default=0)


def falling(values: Sequence[float]) -> list[int]:
    """Return the places of ``values``, the largest first."""
    return sorted(range(len(values)), key=lambda place: -values[place])


def exponent_share(layer: Found, exponent: int) -> float:
    """Return the share of a layer's (row, channel) pairs that have ``exponent``."""
    total = sum(layer["exponents"].values())
    return layer["exponents"].get(str(exponent), 0) / total if total else 0.0


SHOWN_LINES = 12
"""Layers whose agreement is drawn over each other."""


def power_name(exponent: int) -> str:
    """Return how an exponent is called: the scale, or a fraction of it."""
    return "the whole scale" if exponent == 0 else f"1/{2**-exponent}"


def least_agreed(powers: Found) -> list[str]:
    """Return the layers by rising mean agreement."""
    means = {name: sum(layer["agreement"]) / len(layer["agreement"]) for name, layer in powers["layers"].items()}
    return sorted(means, key=lambda name: means[name])


def selection_note(powers: Found) -> str:
    """Return how the exponents were chosen, in words."""
    return f"chosen by {powers['selection']} from {powers['samples']} calibration samples"


def exponents_of(powers: Found) -> list[int]:
    """Return the exponents that any layer lists, 0 first."""
    return sorted({int(key) for layer in powers["layers"].values() for key in layer["exponents"]}, reverse=True)


def groups_of(trajectory: Found) -> list[range]:
    """Return the network calls of each group over which the model was calibrated, in order."""
    return [range(first, last + 1) for span in trajectory["spans"] for first, last in span["groups"]]


def end_errors(trajectory: Found, when: str) -> list[float]:
    """Return the held-out mean squared error of each group's end state ``when``, before or after."""
    return [error for span in trajectory["spans"] for error in span[f"error_{when}"]]


def boundaries_of(trajectory: Found, calls: int) -> list[int]:
    """Return the places of the states at which a group begins or ends, of T+1 around T ``calls`` of the network.

    There are none where it was calibrated for another number of calls.
    """
    groups = groups_of(trajectory)
    return [*(group.start for group in groups), calls] if groups[-1].stop == calls else []


def agreements(trajectory: Found) -> Iterator[tuple[range, float | None, float | None]]:
    """Yield for each set of groups that are trained together its calls, and the cosine and the ratio of norms of their
    gradient against the exact one, ``None`` where one of the two was zero."""
    for span in trajectory["spans"]:
        calls = range(span["groups"][0][0], span["groups"][-1][1] + 1)
        yield calls, span["gradient_cosine"], span["gradient_ratio"]


TENTH_NAMES = ("none", "10 %", "20 %", "30 %", "40 %", "50 %")
"""How many of a layer's rows are promoted, by their tenths."""


def widths_of(allocation: Found) -> list[int]:
    """Return the bits that any row has, the fewest first."""
    return sorted({bits for layer in allocation["layers"] for bits in layer["bits"]})


def width_name(bits: int) -> str:
    return f"{bits} bit{'s' if bits > 1 else ''}"


def width_share(layer: Found, bits: int) -> float:
    """Return the share of a layer's rows that have ``bits``."""
    return layer["bits"].count(bits) / len(layer["bits"])


def error_ratios(layer: Found) -> list[float | None]:
    """Return a layer's output error at each allocation over that without any promoted row; None for 0 over 0."""
    alike = layer["errors"][0]
    return [error / alike if alike else None for error in layer["errors"]]


def allocation_note(allocation: Found) -> str:
    """Return in words what mixing rows of other bits does to the layers' errors."""
    layers = allocation["layers"]
    left = [ratio for layer in layers if (ratio := error_ratios(layer)[layer["tenths"]])]
    mixed = sum(layer["moved"] > 0 for layer in layers)
    said = [f"rows by {allocation['settings']['rows']}, {allocation['mean_bits']:.4g} bits in the mean"]
    said += [f"{mixed} of {len(layers)} layers mixed", *filter(None, [allocation.get("limit")])]
    said += [f"error over that of equal bits, geometric mean {geometric_mean(left):.3f}"] if left else []
    return "; ".join(said)


def window_centres(tuning: Found) -> list[float]:
    """Return the place on the axis of network calls of each window over which features were averaged.

    Windows follow one another; the last one ends with the last call, and may share calls with the one before.
    """
    window, calls = tuning["settings"]["window"], len(tuning["noise_error_before"])
    count = len(tuning["distilled_error_before"] or ())
    return [min(place * window, calls - window) + (window - 1) / 2 for place in range(count)]


def candidates_title(allocation: Found) -> str:
    """Return what the axis of the allocations says."""
    return "rows with a bit more" + ("" if allocation["settings"].get("plus") else ", and as many with a bit less")


def tuning_note(tuning: Found) -> str:
    """Return in words what was trained, and where the errors before and after are from."""
    settings = tuning["settings"]
    distilled = f", {settings['distillation']} over windows of {settings['window']} calls"
    return (
        f"rank {settings['rank']}{distilled if tuning['distilled_error_before'] else ''}; best state after iteration "
        f"{tuning['best_iteration']}, chosen on the validation trajectories, on which these errors were measured"
    )


def _check_scaling(found: Found) -> None:
    weighting = found["weighting"]
    bins = len(weighting["lambda"])
    _check_numbers("lambda", weighting["lambda"], bins)
    _check_numbers("error", weighting["error"], bins)
    if not all(type(place) is int and 0 <= place < bins for place in weighting["bin_of_call"]):
        raise ValueError("bin_of_call names bins that are not there")
    for name, layer in found["layers"].items():
        keys = ("held_out_error_before", "held_out_error", "disparity")
        _check_numbers(f"{name}", [layer[key] for key in keys if layer[key] is not None])
    for name, channels in found["channels"].items():
        for key in ("scale", "input_before", "input_after", "weight_before", "weight_after"):
            _check_numbers(f"{key} of {name}", channels[key], len(channels["scale"]))


def _check_powers(found: Found) -> None:
    if type(found["samples"]) is not int or found["samples"] < 1 or not isinstance(found["selection"], str):
        raise ValueError("samples or selection are none")
    rows = rows_of_steps(found)
    for name, layer in found["layers"].items():
        if not all(_FINEST <= int(exponent) <= 0 for exponent in layer["exponents"]):
            raise ValueError(f"exponents of {name} are not between {_FINEST} and 0")
        _check_numbers(f"exponents of {name}", list(layer["exponents"].values()))
        _check_numbers(f"agreement of {name}", layer["agreement"], rows)
        _check_numbers(name, [layer[key] for key in ("scaled", "held_out_error_before", "held_out_error")])


def _check_trajectory(found: Found) -> None:
    settings = found["settings"]
    if type(settings["horizon"]) is not int or settings["horizon"] < 1 or not isinstance(settings["gradient"], str):
        raise ValueError("horizon or gradient are none")
    if not found["spans"]:
        raise ValueError("there are no groups")
    following = 0
    for span in found["spans"]:
        if not span["groups"]:
            raise ValueError("groups are missing")
        for first, last in span["groups"]:
            if type(first) is not int or type(last) is not int or first != following or last < first:
                raise ValueError("the groups do not follow each other")
            following = last + 1
        for key in ("error_before", "error_after"):
            _check_numbers(key, span[key], len(span["groups"]))
        cosine, ratio = span["gradient_cosine"], span["gradient_ratio"]
        _check_numbers("gradient_ratio", [] if ratio is None else [ratio])
        _check_numbers("size of gradient_cosine", [] if cosine is None else [abs(cosine)])
        if cosine is not None and abs(cosine) > _LARGEST_COSINE:
            raise ValueError(f"gradient_cosine is {cosine:.3g}")


def _check_allocation(found: Found) -> None:
    _check_numbers("mean_bits", [found["mean_bits"]])
    if not isinstance(found["settings"]["rows"], str) or not found["layers"]:
        raise ValueError("the rule or the layers are missing")
    if not isinstance(found.get("limit"), str | None):
        raise ValueError("the limit is no sentence")
    for layer in found["layers"]:
        name, rows, tenths = str(layer["name"]), layer["rows"], layer["tenths"]
        _check_numbers(f"errors of {name}", layer["errors"])
        _check_numbers(f"kurtosis of {name}", layer["kurtosis"], rows)
        _check_numbers(f"bits of {name}", layer["bits"], rows)
        if not layer["bits"] or not all(type(bits) is int and 1 <= bits <= len(BIT_COLOURS) for bits in layer["bits"]):
            raise ValueError(f"bits of {name} are not 1 to {len(BIT_COLOURS)}")
        if len(layer["errors"]) > len(TENTH_NAMES):
            raise ValueError(f"errors of {name}: more than half of the rows cannot be promoted")
        if type(tenths) is not int or not 0 <= tenths < len(layer["errors"]):
            raise ValueError(f"tenths of {name} are none that was tried")
        if type(layer["moved"]) is not int:
            raise ValueError(f"moved rows of {name} are no number")


def _check_tuning(found: Found) -> None:
    settings = found["settings"]
    if type(settings["window"]) is not int or settings["window"] < 1 or not isinstance(settings["distillation"], str):
        raise ValueError("window or distillation are none")
    if type(settings["rank"]) is not int or type(found["best_iteration"]) is not int:
        raise ValueError("rank or best iteration are none")
    noise = [found["noise_error_before"], found["noise_error_after"]]
    distilled = [found["distilled_error_before"], found["distilled_error_after"]]
    if not noise[0]:
        raise ValueError("there are no errors")
    if (distilled[0] is None) != (distilled[1] is None):
        raise ValueError("what is distilled was measured once only")
    for name, both in (("noise_error", noise), ("distilled_error", distilled)):
        first = both[0]
        if first is not None:
            for values in both:
                _check_numbers(name, values, len(first))


def _check_numbers(name: str, values: Sequence[Any], length: int | None = None) -> None:
    if length is not None and len(values) != length:
        raise ValueError(f"{name}: {len(values)} numbers instead of {length}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name} holds {value!r:.40}, which is no number ≥ 0")


_CHECKS = {
    SCALING: _check_scaling,
    POWERS: _check_powers,
    TRAJECTORY: _check_trajectory,
    ALLOCATION: _check_allocation,
    TUNING: _check_tuning,
}
