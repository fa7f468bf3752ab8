"""The names of variants: what a table calls a row whose method was not run as its YAML has it. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from dmqbench.schema import ABOUT_STAGE


def variant_text(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What sets ``after`` apart from the YAML or preset ``before``, in a few words: part of a row's name in tables.

    What changes no number is not named: settings of stages that are not listed, and those that enter no id.
    """
    usual, chosen = before[".stages"], after[".stages"]
    words = ["faithful"] if after.get(".faithful") and not before.get(".faithful") else []
    words += [f"no {stage}" for stage in usual if stage not in chosen]
    words += [f"with {stage}" for stage in chosen if stage not in usual]
    if not words and usual != chosen:
        words.append("stages=" + ">".join(chosen))
    for name, value in after.items():
        _, stage, *key = name.split(".")
        if (
            before.get(name) == value
            or stage not in chosen
            or key[0] in (*ABOUT_STAGE, *after.get(f".{stage}.not_in_id", ()))
        ):
            continue
        shared = sum(f".{other}.{'.'.join(key)}" in after for other in chosen) > 1
        shown = str(value).lower() if isinstance(value, bool) else value  # as on the command line
        words.append(f"{stage + '.' if shared else ''}{'.'.join(key)}={shown}")
    return ", ".join(words)


def calibration_text(calibration: Mapping[str, Any]) -> str:
    """How the calibrated plan differs from that of sampling, in a few words; "" if it does not.

    Of calls at other timesteps than the calibrated ones it is said how they are matched, unless by the nearest.
    """
    said = {key: value for key, value in calibration.items() if key != "match" and value is not None}
    if "steps" in said and calibration.get("match") == "interpolate":
        said["match"] = "interpolate"
    return ", ".join(f"calibration.{key}={value}" for key, value in said.items())
