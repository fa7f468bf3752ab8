"""A denoiser of the user's own as a model folder, for as long as it is worked with."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save, save_file

from dmqbench.models.export import stated_by, untied
from dmqbench.models.folders import CONFIG, OWN_MARK, SCHEDULER_CONFIG, WEIGHTS
from dmqbench.models.own import Conditions, Denoiser, lent
from dmqbench.store.files import TEMPORARY_PREFIX, save_json


@contextmanager
def described(denoiser: Denoiser, place: Path) -> Iterator[Path]:
    """A folder inside ``place`` that says of a denoiser what the files of others say; sources find the denoiser by it.

    Its name in a store is the hash of what is written here: weights, shape, conditions and noise schedule.
    """
    scheduler = stated_by(denoiser.scheduler, denoiser.name)
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}denoiser-", dir=place) as temporary:
        folder = Path(temporary)
        save_json(folder / CONFIG, _facts(denoiser))
        save_file(untied(denoiser.network.state_dict()), folder / WEIGHTS, {"format": "pt"})
        save_json(folder / SCHEDULER_CONFIG, scheduler)
        with lent(temporary, denoiser):
            yield folder


def _facts(denoiser: Denoiser) -> dict[str, Any]:
    channels, *size = denoiser.sample_shape
    return {
        "_class_name": type(denoiser.network).__name__,
        "in_channels": channels,
        "sample_size": size,
        OWN_MARK: {"conditions": _hash(denoiser.conditions), "guided": denoiser.conditions.null is not None},
    }


def _hash(given: Conditions) -> str:
    parts = (given.rows, given.evaluation or {}, given.null or {})
    return hashlib.sha256(b"".join(save(untied(part)) for part in parts)).hexdigest()
