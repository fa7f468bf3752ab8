"""Convert an original checkpoint of latent diffusion or Stable Diffusion 1.x to a diffusers folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dmqbench.models.compvis.conversion import convert
from dmqbench.models.compvis.settings import Settings, settings_of_architecture, settings_of_yaml
from dmqbench.models.folders import CONVERTER, ModelError


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for what cannot be converted, which is said in one line."""
    parser = argparse.ArgumentParser(prog=CONVERTER, description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="model.ckpt, .pt or .safetensors with the original's names")
    parser.add_argument("folder", type=Path, help="what is written")
    parser.add_argument("--yaml", type=Path, help="that it was trained with; the only one beside it needs no naming")
    parser.add_argument("--model", help="what it is instead, where it lacks a YAML, such as ldm4_imagenet or sd14")
    given = parser.parse_args(arguments)
    try:
        convert(given.checkpoint, given.folder, _settings(given), lambda line: print(line, flush=True))
    except (ModelError, OSError) as error:
        print(f"{CONVERTER}: {error}", file=sys.stderr)
        return 2
    return 0


def _settings(given: argparse.Namespace) -> Settings:
    if given.model is not None:
        return settings_of_architecture(given.model)
    beside = sorted(given.checkpoint.parent.glob("*.yaml"))
    if given.yaml is None and len(beside) != 1:
        there = f"{len(beside)} of them are" if beside else "none is"
        raise ModelError(f"give --yaml, with which it was trained, as {there} beside {given.checkpoint}, or --model")
    return settings_of_yaml(given.yaml or beside[0])


if __name__ == "__main__":
    sys.exit(main())
