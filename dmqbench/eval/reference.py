"""What metrics compare samples with when they compare with a dataset: its images, or statistics made from them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmqbench.config.names import INCEPTIONS, STAND_IN
from dmqbench.data.archive_info import ArchiveError
from dmqbench.data.archives import read_images
from dmqbench.data.npz_images import NAMES, arrays_in
from dmqbench.data.own_images import OWN_IMAGES, own_images
from dmqbench.data.statistics_file import FEATURES, GAUSSIANS, read_statistics
from dmqbench.eval.features import Extractor, Features, Output
from dmqbench.eval.frechet import Gaussian
from dmqbench.eval.inception import ADM, INCEPTION, POOL_DIMENSION
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.weights import digest
from dmqbench.store.downloads import in_one_line

FROM_FILE = "file"
"""Ends the name of a reference that is not the one shipped for its dataset."""

FeaturesOf = Callable[[str, Tensor, Extractor], Features]
"""(id of the images, images uint8 [N, C, H, W], network) → their features, from a cache or computed."""

_GAUSSIAN_OUTPUTS: tuple[Output, ...] = ("pool", "spatial")


@dataclass(frozen=True)
class Reference:
    """One dataset as one network sees it. ``name`` and ``hash`` stand in the protocol.

    ``gaussians``: means and covariances that came with it; ``features``: computes or gives the features of its images,
    ``None`` where only statistics are known.
    """

    name: str
    hash: str
    gaussians: Mapping[Output, Gaussian] = field(default_factory=dict)
    features: Callable[[], Features] | None = None

    def side(self, output: Output, needs_features: bool) -> Tensor | Gaussian:
        """Return the given Gaussian of ``output`` if that is enough, else its features [N, d].

        ``MetricUnavailable`` if only statistics are known and they are not what is needed.
        """
        if output in self.gaussians and not needs_features:
            return self.gaussians[output]
        if self.features is None:
            known = ", ".join(self.gaussians)
            raise MetricUnavailable(
                f"the reference of {self.name} holds statistics of {known} features only, and this metric needs "
                f"{'the' if needs_features else 'those of the'} {output} features: give images with dataset.reference"
            )
        features = self.features()
        if output not in features:
            raise MetricUnavailable(
                f"the reference of {self.name} holds {', '.join(features)} features, and this metric needs {output}: "
                "give images with dataset.reference"
            )
        return features[output]


def load_reference(dataset: str, path: str | None, extractor: Extractor, features_of: FeaturesOf) -> Reference:
    """Return what metrics in the features of ``extractor`` compare with.

    ``path`` is ``dataset.reference``: a folder of images; an archive (npz) of images; statistics of the ADM suite (mu,
    sigma, mu_s, sigma_s, with or without images); or clean-fid's (mu, sigma, or feats). Without it, the images that are
    shipped for ``dataset``.

    Raises:
        MetricUnavailable: there is none, or it does not fit the network; one line.
    """
    if path is None:
        return _of_images(dataset, _shipped(dataset), extractor, features_of)
    if (arrays := _statistics(Path(path))) is not None:
        return _of_statistics(f"{dataset}:{FROM_FILE}", Path(path), arrays, extractor, features_of)
    return _of_images(f"{dataset}:{FROM_FILE}", _images(path), extractor, features_of)


def content_hash(images: Tensor) -> str:
    """Return the sha256 of the pixels of uint8 images."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class _Images:
    """Images uint8 [N, C, H, W] and the hash of their pixels."""

    pixels: Tensor
    hash: str


def _of_images(dataset: str, images: _Images, extractor: Extractor, features_of: FeaturesOf) -> Reference:
    return Reference(dataset, images.hash, features=lambda: _features(images, extractor, features_of))


def _features(images: _Images, extractor: Extractor, features_of: FeaturesOf) -> Features:
    return features_of(images.hash, images.pixels, extractor)


@lru_cache(maxsize=1)
def _images(path: str) -> _Images:
    """Images of a folder or an archive; several metrics in a row ask for the same."""
    try:
        pixels = torch.from_numpy(read_images(path))
    except (OSError, ValueError) as error:
        raise MetricUnavailable(f"dataset.reference={in_one_line(error)}") from None
    return _Images(pixels, content_hash(pixels))


@lru_cache(maxsize=1)
def _shipped(dataset: str) -> _Images:
    if dataset not in OWN_IMAGES:
        raise MetricUnavailable(
            f"no images of dataset={dataset} are known here: give them, or their statistics, with dataset.reference"
        )
    pixels = own_images(dataset)
    return _Images(pixels, content_hash(pixels))


def _of_statistics(
    dataset: str, path: Path, arrays: Mapping[str, np.ndarray], extractor: Extractor, features_of: FeaturesOf
) -> Reference:
    _check_fit(path, arrays, extractor)
    gaussians: dict[Output, Gaussian] = {}
    for output in _GAUSSIAN_OUTPUTS:
        mean, covariance = GAUSSIANS[output]
        if mean in arrays:
            gaussians[output] = Gaussian(*(torch.from_numpy(arrays[name]).double() for name in (mean, covariance)))
    reference = Reference(dataset, digest(path), gaussians)
    if FEATURES in arrays:
        given: Features = {"pool": torch.from_numpy(arrays[FEATURES]).float()}
        return replace(reference, features=lambda: given)
    if any(name in arrays_in(path) for name in NAMES):
        return replace(reference, features=lambda: _features(_images(str(path)), extractor, features_of))
    return reference


def _statistics(path: Path) -> Mapping[str, np.ndarray] | None:
    try:
        return read_statistics(path)
    except ArchiveError as error:
        raise MetricUnavailable(f"dataset.reference={error}") from None


def _check_fit(path: Path, arrays: Mapping[str, np.ndarray], extractor: Extractor) -> None:
    """Statistics do not say which network they are of: refuse those that cannot be of this one."""
    what = f"dataset.reference={path} holds statistics"
    protocol = extractor.name.removeprefix(STAND_IN).removeprefix(INCEPTION)
    if protocol not in INCEPTIONS:
        raise MetricUnavailable(f"{what} of Inception features, and these are those of {protocol}: give images")
    of_adm = all(name in arrays for name in GAUSSIANS["spatial"])
    if of_adm and protocol != ADM:
        raise MetricUnavailable(f"{what} of the ADM suite (mu_s, sigma_s): they go with metrics.inception={ADM}")
    if not of_adm and protocol == ADM:
        raise MetricUnavailable(f"{what} without mu_s and sigma_s, so not of the ADM suite: give its file, or images")
    for name in ("mu", "feats"):
        if name in arrays and arrays[name].shape[-1:] != (POOL_DIMENSION,):
            raise MetricUnavailable(f"{what} of shape {arrays[name].shape} ({name}): {POOL_DIMENSION} features needed")
