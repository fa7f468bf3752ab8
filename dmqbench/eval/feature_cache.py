"""Features in the run store: computed once per set of images and network, shared by all metrics and jobs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from dmqbench.eval.evaluate import FeatureSource, FloorSource, SampleSet
from dmqbench.eval.features import Extractor, Features, extract
from dmqbench.eval.measurement import Floor
from dmqbench.store.artifacts import Store
from dmqbench.store.files import json_text, load_json, save_atomic, short_hash
from dmqbench.tracking.progress import Meter

VERSION = 1
IMAGES_PER_FILE = 512
"""A killed evaluation of 50,000 images goes on with the next file, and more samples add files."""

FLOORS = "floors.json"

_SHOWN_FROM = 4


def features_id(samples: str, extractor: Extractor, device: str) -> str:
    """Id of the features of the images ``samples`` in the network ``extractor``."""
    network = {"name": extractor.name, "hash": extractor.hash, "tool": extractor.tool, "resize": extractor.resize}
    return short_hash({"kind": "features", "version": VERSION, "of": samples, "network": network, "device": device})


def feature_source(store: Store, device: str) -> FeatureSource:
    """Return what looks features up in ``store``, computing and keeping those that are not there."""

    def features(samples: SampleSet, extractor: Extractor) -> Features:
        id = features_id(samples.id, extractor, device)
        parts = [
            slice(start, min(start + IMAGES_PER_FILE, len(samples)))
            for start in range(0, len(samples), IMAGES_PER_FILE)
        ]
        present = store.verified_files("features", id)
        missing = [part for part in parts if _name(part) not in present]
        for part in _metered(f"{extractor.name} features", missing):
            _provide(store, id, _name(part), lambda part=part: _extracted(extractor, samples.images[part]))
        present = store.verified_files("features", id)
        loaded = [load_file(present[_name(part)]) for part in parts]
        return {output: torch.cat([part[output] for part in loaded]) for output in extractor.outputs}

    return features


def floor_source(store: Store, device: str) -> FloorSource:
    """Return what looks floors up in ``store``: each takes as long as the metric itself, and all jobs share it."""

    def floors(about: Mapping[str, Any], measure: Callable[[], Mapping[str, Floor]]) -> Mapping[str, Floor]:
        id = short_hash({"kind": "features", "version": VERSION, "floor": about, "device": device})
        if FLOORS not in store.verified_files("features", id):
            _provide(store, id, FLOORS, lambda: json_text({name: floor.to_json() for name, floor in measure().items()}))
        records = load_json(store.verified_files("features", id)[FLOORS])
        return {name: Floor.from_json(record) for name, record in records.items()}

    return floors


def _provide(store: Store, id: str, name: str, content: Callable[[], bytes | str]) -> None:
    """Let the store have a file of some features, which one process computes while the others wait."""
    with store.lock("features", id, part=name):
        if name not in store.verified_files("features", id):
            computed = content()
            store.append_file("features", id, name, lambda path: save_atomic(path, computed))


def _metered(title: str, parts: Sequence[slice]) -> Iterator[slice]:
    """Yield ``parts``, with a progress bar where there are enough of them."""
    if len(parts) < _SHOWN_FROM:
        yield from parts
        return
    with Meter(title, len(parts)) as meter:
        for part in parts:
            yield part
            meter.advance()


def _name(part: slice) -> str:
    return f"images_{part.start:06d}_{part.stop:06d}.safetensors"


def _extracted(extractor: Extractor, images: torch.Tensor) -> bytes:
    return serialize({name: value.contiguous() for name, value in extract(extractor, images).items()})
