"""What the matrix of families has for columns, where its outcomes lie, and the page that they make."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dmqbench.config.plugins import own_names

OUTCOMES = Path(__file__).with_name("matrix.json")
"""Family → column → outcome."""
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"

RTN = "method=rtn bits=w8a8"
METHODS = {
    "fp": "method=fp",
    "rtn": RTN,
    "q_diffusion": "method=q_diffusion bits=w4a6",
    "dmq": "method=dmq bits=w4a6",
    "dmq_les": "method=dmq_les bits=w4a6",
    "accuquant": "method=accuquant bits=w3a6",
    "efficient_dm": "method=efficient_dm bits=w4a4",
    "mpq_dm": "method=mpq_dm bits=w3a6",
}
COMMANDS = {
    task: f"task={task} {RTN}"
    for task in ("trajectories", "calibrate", "sample", "evaluate", "plan", "cost", "anatomy")
}
SCRIPT = ("quantize_", "save, load")
WORKS = "works"

NETWORKS = {
    "unet": "`UNet2DModel`, pixels",
    "ldm": "`UNet2DModel`, latents of a `VQModel`",
    "ldm_classes": "`UNet2DConditionModel`, classes as tokens",
    "sd": "Stable Diffusion",
    "sdxl": "SDXL",
    "dit": "DiT",
    "pixart": "PixArt",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX.1",
}
"""Rows of the tables."""

_TEXT = """# Families, methods and commands

What was found when every method and every command was carried out on a small network of each
[family](../guides/models.md#families), with random weights, in two steps, by `tests/e2e/test_matrix.py`. It
says that they fit together, and nothing of image quality. A number in brackets is a [reason](#reasons).

## Methods

{methods}

## Commands

{commands}

## In a script

{script}

## Reasons

{reasons}
"""


def built_methods() -> set[str]:
    """Every method of this project; ``foreign`` is what another program quantized."""
    return {*own_names("method")} - {"foreign"}


def page(outcomes: Mapping[str, Mapping[str, str]]) -> str:
    """Return the page that says ``outcomes``."""
    found = dict.fromkeys(outcomes[family][column] for family in NETWORKS for column in outcomes[family])
    reasons = [text for text in found if text != WORKS]
    tables = {"methods": METHODS, "commands": COMMANDS, "script": SCRIPT}
    drawn = {name: _table(outcomes, list(columns), reasons) for name, columns in tables.items()}
    listed = "\n".join(f"{number}. {text[0].upper()}{text[1:]}." for number, text in enumerate(reasons, 1))
    return _TEXT.format(**drawn, reasons=listed)


def _table(outcomes: Mapping[str, Mapping[str, str]], columns: Sequence[str], reasons: Sequence[str]) -> str:
    def cell(text: str) -> str:
        return text if text == WORKS else f"{text.partition(':')[0]} ({1 + reasons.index(text)})"

    rows = [
        ["network", *(f"`{column}`" for column in columns)],
        ["---"] * (1 + len(columns)),
        *([name, *(cell(outcomes[family][column]) for column in columns)] for family, name in NETWORKS.items()),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def recorded() -> dict[str, dict[str, str]]:
    return json.loads(OUTCOMES.read_text()) if OUTCOMES.exists() else {}


def record(family: str, column: str, outcome: str) -> None:
    """Write an outcome down, and the page once there is one for every cell."""
    outcomes = recorded()
    outcomes.setdefault(family, {})[column] = outcome
    OUTCOMES.write_text(json.dumps(outcomes, indent=1) + "\n")
    if all({*METHODS, *COMMANDS, *SCRIPT} <= {*outcomes.get(name, ())} for name in NETWORKS):
        PAGE.write_text(page(outcomes))
