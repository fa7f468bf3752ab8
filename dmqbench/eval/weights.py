"""The files of weights that metrics need: what they are, where they lie, and how they are fetched. Imports no torch.

A file is used only if its sha256 is the published one. In a folder that holds a file ``STAND-IN`` any file of the right
name will do, and what is computed with it carries ``stand-in`` in its name: this is how tests run the real code
without the real weights.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path

from dmqbench.config.schema import MetricsConfig
from dmqbench.eval.protocol import WeightsMissing
from dmqbench.store import downloads
from dmqbench.store.downloads import in_one_line
from dmqbench.store.files import exclusive, sha256_file

STAND_IN_MARKER = "STAND-IN"
"""The file whose presence says that a folder's weights are made up."""

_YES = ("1", "TRUE", "YES", "ON")


@dataclass(frozen=True)
class WeightFile:
    """A published file: its name, sha256, size and address.

    ``aliases``: other names under which the same bytes are published; ``metrics``: which need it, under some settings.
    """

    name: str
    sha256: str
    size_bytes: int
    url: str
    metrics: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def size(self) -> str:
        return f"{self.size_bytes / 1e6:.0f} MB"


@dataclass(frozen=True)
class Located:
    """Where a file is, and the digest of what is there; ``stand_in``: it is not what its name says."""

    path: Path
    sha256: str
    stand_in: bool = False


INCEPTION_SCRIPT = WeightFile(
    name="inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    size_bytes=95_607_719,
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    metrics=("fid", "kid", "fid2fp32"),
)
"""The network as TorchScript, for clean-fid's modes ``clean`` and ``legacy_tensorflow``."""

INCEPTION_STATE = WeightFile(
    name="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size_bytes=95_628_359,
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    metrics=("sfid", "is", "precision", "recall", "fid", "kid", "fid2fp32"),
    aliases=("pt_inception-2015-12-05-6726825d.pth",),
)
"""The same weights as a state dict: torch-fidelity and pytorch-fid publish one file under two names."""


def _backbone(name: str, sha256: str, size_bytes: int) -> WeightFile:
    return WeightFile(name, sha256, size_bytes, f"https://download.pytorch.org/models/{name}", ("lpips",))


LPIPS_BACKBONE_FILES = {
    "alex": _backbone(
        "alexnet-owt-7be5be79.pth", "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02", 244_408_911
    ),
    "vgg": _backbone(
        "vgg16-397923af.pth", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0", 553_433_881
    ),
    "squeeze": _backbone(
        "squeezenet1_1-b8a52dc0.pth", "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b", 4_958_839
    ),
}
"""``metrics.lpips`` → its backbone, from torchvision."""

WEIGHT_FILES = (INCEPTION_SCRIPT, INCEPTION_STATE, *LPIPS_BACKBONE_FILES.values())


def inception_file(protocol: str) -> WeightFile:
    """The file that one of ``INCEPTIONS`` needs."""
    return INCEPTION_SCRIPT if protocol in ("clean", "legacy_tensorflow") else INCEPTION_STATE


def find(file: WeightFile, settings: MetricsConfig) -> Located | None:
    """Return where ``file`` lies, without fetching it, or None.

    Raises:
        WeightsMissing: what lies there under its name is another file, in one line.
    """
    for path in _candidates(file, settings):
        if path.is_file():
            return _checked(file, path, is_stand_in(settings) and path.parent == Path(settings.weights or ""))
    return None


def locate(file: WeightFile, settings: MetricsConfig) -> Located:
    """Return where ``file`` lies: in ``metrics.weights``, in the user's caches, or downloaded into torch's.

    Raises:
        WeightsMissing: it is in none of these, or not itself; one line says which file, how large, where it was
            looked for and how to get it.
    """
    if (found := find(file, settings)) is not None:
        return found
    if forbidden := download_forbidden(settings):
        raise _missing(file, settings, forbidden)
    return _downloaded(file, settings)


def is_stand_in(settings: MetricsConfig) -> bool:
    """Whether the weights in ``metrics.weights`` are made up."""
    return settings.weights is not None and (Path(settings.weights) / STAND_IN_MARKER).exists()


def download_forbidden(settings: MetricsConfig) -> str | None:
    """What forbids a download, or None. ``HF_HUB_OFFLINE`` forbids all, not only those from the hub."""
    if not settings.download:
        return "metrics.download=false"
    return "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES else None


def torch_checkpoints() -> Path:
    """The folder in which torch.hub keeps downloaded weights; ``TORCH_HOME`` moves it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("TORCH_HOME", cache / "torch")).expanduser() / "hub" / "checkpoints"


def digest(path: Path) -> str:
    """Return the sha256 of a file, computed once per process unless the file changes."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


def _folders(file: WeightFile, settings: MetricsConfig) -> Iterator[Path]:
    if settings.weights is not None:
        yield Path(settings.weights)
    yield torch_checkpoints()
    if file is INCEPTION_SCRIPT:
        yield Path(tempfile.gettempdir())


def _candidates(file: WeightFile, settings: MetricsConfig) -> Iterator[Path]:
    for folder in _folders(file, settings):
        yield from (folder / name for name in file.names)


def _checked(file: WeightFile, path: Path, stand_in: bool) -> Located:
    content = digest(path)
    if not stand_in and content != file.sha256:
        raise WeightsMissing(
            f"{path} is not the published file of this name: its sha256 begins {content[:8]}, not {file.sha256[:8]}; "
            f"remove it, or replace it by {file.url}"
        )
    return Located(path, content, stand_in)


def _missing(file: WeightFile, settings: MetricsConfig, why: str) -> WeightsMissing:
    places = ", ".join(str(folder) for folder in _folders(file, settings))
    return WeightsMissing(
        f"needs {file.name} ({file.size}), which is not in {places} and was not downloaded: {why}; "
        f"get it from {file.url} and name its folder with metrics.weights"
    )


_failures: dict[str, str] = {}
"""Address → why it could not be fetched: metrics that share a file do not each wait for a server that hangs."""


def _downloaded(file: WeightFile, settings: MetricsConfig) -> Located:
    path = torch_checkpoints() / file.name
    if file.url not in _failures:
        try:
            with exclusive(path.with_suffix(".lock"), on_wait=lambda: _say_waiting(file)):
                if not path.is_file():
                    _fetch(file, path)
            return _checked(file, path, stand_in=False)
        except (OSError, HTTPException, downloads.WrongContent) as error:
            _failures[file.url] = in_one_line(error)
    raise _missing(file, settings, _failures[file.url])


def _say_waiting(file: WeightFile) -> None:
    print(f"{file.name}: waiting for another process that is fetching it", file=sys.stderr, flush=True)


def _fetch(file: WeightFile, path: Path) -> None:
    """Write the file that ``file.url`` serves to ``path``, if it is the published one."""
    from dmqbench.tracking.progress import Meter

    with Meter(f"{file.name} (MiB)", -(-file.size_bytes // downloads.MIB)) as meter:
        downloads.fetch(file.url, path, file.sha256, meter.advance)
