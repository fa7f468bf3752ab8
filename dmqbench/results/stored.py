"""Results and images as a store keeps them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from dmqbench.results.result import Result
from dmqbench.store.artifacts import Store
from dmqbench.store.manifest import Manifest, Verifier

Pixels = NDArray[np.uint8]


def load_store(root: Path, on_damage: Callable[[str], None]) -> list[Result]:
    """Return the finished results of the run store ``root``, sorted by ``Result.rank``.

    Only what a manifest vouches for is read; ``on_damage`` gets one line for each result that is left out.
    Nothing is moved or written, so a read-only store will do.
    """
    store, verifier = Store(root), Verifier()
    results = []
    for id in store.ids("result"):
        folder = store.path("result", id)
        try:
            manifest = Manifest.load(folder, "result", id)
            for name, entry in manifest.files.items():
                problem = verifier.problem(folder, name, entry)
                if problem:
                    raise ValueError(f"{name} {problem}")
            results.append(Result.load(folder))
        except (OSError, ValueError) as error:
            on_damage(f"result {id} is left out: {error}")
    return sorted(results, key=lambda result: result.rank)


def first_images(store: Store, id: str, count: int) -> Pixels:
    """Read the first ``count`` images of a samples artifact, and no more chunks than that takes."""
    parts: list[Pixels] = []
    for chunk in sorted(store.path("samples", id).glob("chunk_*.safetensors")):
        if sum(len(part) for part in parts) >= count:
            break
        with safe_open(chunk, framework="numpy") as tensors:
            parts.append(tensors.get_tensor("images"))
    if not parts:
        raise ValueError(f"the store holds no samples {id}")
    return np.concatenate(parts)[:count]
