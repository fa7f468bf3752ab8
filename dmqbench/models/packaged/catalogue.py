"""Which networks inside installed packages are known, and the folders that are made of them. Needs no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dmqbench.models.folders import CONFIG, NETWORK_FOLDERS, WEIGHTS, ModelError
from dmqbench.store.files import json_hash, replacing, save_atomic, sha256_once
from dmqbench.store.packages import NotInstalled, absent, packaged_file

CONFIGURATIONS = Path(__file__).with_name("configurations")
"""Of every known network, the folder that diffusers would have saved, without the weights."""
_NETWORK = NETWORK_FOLDERS[0]


@dataclass(frozen=True)
class PackagedModel:
    """A network inside a package.

    Attributes:
        distribution: what pip installs without the package's own requirements, at its version.
        package: what holds ``file``, as Python imports it; the hash of the file is ``sha256``.
        convert: writes (file, ``config.json``) as safetensors to a path.
        version: of what ``convert`` writes.
        needs: what else is installed for ``convert``.
    """

    distribution: str
    package: str
    file: str
    sha256: str
    convert: Callable[[Path, Path, Path], None]
    version: int = 1
    needs: tuple[str, ...] = ("onnx",)

    @property
    def commands(self) -> tuple[str, str]:
        """What installs it."""
        return f"pip install --no-deps {self.distribution}", f"pip install {' '.join(self.needs)}"

    @property
    def installation(self) -> str:
        return ", and ".join(self.commands)


def _terrain(file: Path, config: Path, target: Path) -> None:
    from dmqbench.models.packaged.terrain import convert

    convert(file, config, target)


PACKAGED: Mapping[str, PackagedModel] = {
    "terrain": PackagedModel(
        distribution="adaptive-terrain-diffusion==0.4.2",
        package="terrain_diffusion",
        file="weights/terrain_consistency_unet_difficulty100.onnx",
        sha256="95be54b4a39d58320e187a7ec533351c957f16a00be58773c86074828ee67887",
        convert=_terrain,
    )
}


def packaged_folder(name: str) -> Path:
    """Return a folder with the network ``name`` as diffusers saves one, kept among the files of the hub's client.

    Raises:
        ModelError: no such network is known, its package is not installed, or its file is not the published one.
    """
    if (model := PACKAGED.get(name)) is None:
        raise ModelError(f"model {name}: no package with it is known (allowed: {', '.join(PACKAGED)})")
    file = _installed(name, model)
    stated = sorted((CONFIGURATIONS / name).rglob("*.json"))
    hashes = [model.sha256, str(model.version), *map(sha256_once, stated)]
    folder = _cache(f"{name}-{json_hash(hashes)[:16]}")
    for path in stated:
        copy = folder / path.relative_to(CONFIGURATIONS / name)
        if not copy.is_file():
            save_atomic(copy, path.read_bytes())
    weights = folder / _NETWORK / WEIGHTS
    if not weights.is_file():
        if missing := absent(*model.needs):
            raise ModelError(f"model {name} needs the package {missing[0]} once: {model.installation}")
        with replacing(weights) as temporary:
            model.convert(file, folder / _NETWORK / CONFIG, temporary)
    return folder


def _installed(name: str, model: PackagedModel) -> Path:
    try:
        return packaged_file(model.package, model.file, model.sha256)
    except NotInstalled:
        package = model.distribution.partition("==")[0]
        raise ModelError(f"model {name} is in the package {package}, not installed: {model.installation}") from None
    except ValueError as error:
        raise ModelError(f"{error} of {model.distribution}: {model.installation}") from None


def _cache(key: str) -> Path:
    from huggingface_hub import cached_assets_path

    return cached_assets_path("dmqbench", "packages", key)
