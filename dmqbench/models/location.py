"""Where a model's files lie: in a folder here, or in a repository from which those that are read are fetched.

Needs no torch.
"""

from collections.abc import Collection
from contextlib import suppress
from functools import cache
from pathlib import Path

from dmqbench.models import class_table, folders
from dmqbench.models.folders import (
    CONFIG,
    DECODER_FOLDERS,
    ENCODER_FOLDERS,
    NETWORK_FOLDERS,
    OWN,
    SCHEDULER_CONFIG,
    SCHEDULER_CONFIGS,
    TOKENIZER_FOLDERS,
    WEIGHTS,
    ModelError,
    ModelSource,
    decoder_folder,
    network_folder,
    only_one,
    scheduler_file,
)
from dmqbench.models.packaged.catalogue import packaged_folder
from dmqbench.models.text_files import INDEX, TOKENIZER_SUFFIXES
from dmqbench.models.weight_files import leading_file, shards_of, weight_files
from dmqbench.store.downloads import unanswered


def locate(source: ModelSource) -> Path:
    """Return the model's folder, downloading a hub repository unless it is cached or ``HF_HUB_OFFLINE`` is set.

    Raises:
        ModelError: there is no such folder, or the repository cannot be had.
    """
    if source.revision is not None:
        return _snapshot(source.location, source.revision, source.advice)
    if source.kind == "package":
        return packaged_folder(source.location)
    places = {"embedded": folders.EMBEDDED, "architecture": folders.ARCHITECTURES, "local": Path(), OWN: Path()}
    folder = places[source.kind] / source.location
    if folder.is_file():
        command = f"{folders.CONVERTER} {source.location} FOLDER"
        raise ModelError(f"{folder} is a file; of an original checkpoint of latent diffusion, {command} makes a folder")
    if not folder.is_dir():
        raise ModelError(f"model {source.location}: there is no folder {folder}; {source.advice}")
    return folder


def locate_scheduler(source: ModelSource) -> Path | None:
    """Return the file that states the model's noise schedule: the one that is given, or its own; None without one.

    Raises:
        ModelError: what is given is no file and no folder that holds one.
    """
    if source.scheduler is None:
        return scheduler_file(locate(source))
    given = Path(source.scheduler)
    found = given if given.is_file() else scheduler_file(given)
    if found is None:
        raise ModelError(f"{given}: no {SCHEDULER_CONFIG.name} there nor in {SCHEDULER_CONFIG.parent}/")
    return found


_REFUSALS = {
    "GatedRepoError": "is gated: accept its terms on its page on the hub, then hf auth login",
    "RepositoryNotFoundError": "is not there, or not for all: check its name, or hf auth login",
    "RevisionNotFoundError": "is not there: the repository has no such commit, branch or tag",
}
"""What the hub's client calls a refusal → what that means."""


@cache
def _snapshot(location: str, revision: str, advice: str) -> Path:
    """The folder of a repository, with all that is loaded of it; asked for once in a process, if it is to be had."""
    try:
        folder = _found(location, revision)
    except ModelError:
        raise
    except Exception as error:  # the hub's client changes its errors, and those of its own client, with its versions
        name = type(error).__name__
        reason = _REFUSALS.get(name, f"is neither cached nor to be had from the hub ({name}); {advice}")
        raise ModelError(f"model {location} at revision {revision} {reason}") from error
    encoders = (folder / name for name in ENCODER_FOLDERS if (folder / name / CONFIG).is_file())
    table = class_table.class_table_folder(folder)
    for part in (network_folder(folder, advice), decoder_folder(folder), table, *encoders):
        if part is not None:
            weight_files(part, advice)
    return folder


def _found(location: str, revision: str) -> Path:
    """The folder from the hub, or without an answer of it the one in the cache, in which files may be missing."""
    from huggingface_hub import constants, hf_hub_url

    # The hub's own client waits for a silent server and asks again, for many minutes.
    alone = constants.HF_HUB_OFFLINE or unanswered(hf_hub_url(location, SCHEDULER_CONFIG.as_posix()))
    if not alone:
        try:
            return _fetched(location, revision)
        except ModelError:
            raise
        except Exception as error:
            with suppress(Exception):
                return _cached(location, revision)
            raise error
    return _cached(location, revision)


def _cached(location: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    # Whether all is there that is needed, weight_files knows; the client would ask for all that matches a pattern.
    return Path(snapshot_download(location, revision=revision, local_files_only=True, allow_patterns=[INDEX]))


def _fetched(location: str, revision: str) -> Path:
    """Fetch what the configurations and the weights of a repository's parts are, and no weights that are not loaded."""
    from huggingface_hub import HfApi, snapshot_download

    names = HfApi().list_repo_files(location, revision=revision)
    parts = _parts(Path(location), names)
    heads = [f"{part}{leading_file(Path(location, part), _within(part, names))}" for part in parts]
    schedulers = [name.as_posix() for name in SCHEDULER_CONFIGS]
    words = [f"{name}/*{suffix}" for name in TOKENIZER_FOLDERS for suffix in TOKENIZER_SUFFIXES]
    wanted = [INDEX, *schedulers, *words, *(f"{part}{CONFIG}" for part in parts), *heads]
    folder = Path(snapshot_download(location, revision=revision, allow_patterns=wanted))
    indices = [folder / head for head in heads if head.endswith(".json")]
    shards = [path.relative_to(folder).as_posix() for index in indices for path in shards_of(index)]
    if shards:
        snapshot_download(location, revision=revision, allow_patterns=shards)
    return folder


def _parts(folder: Path, names: Collection[str]) -> list[str]:
    """The network, perhaps a decoder, a table of classes and encoders of text: what their files' names begin with."""
    networks, decoders, tables, encoders = (
        [f"{name}/" for name in known if f"{name}/{CONFIG}" in names]
        for known in (NETWORK_FOLDERS, DECODER_FOLDERS, (class_table.FOLDER,), ENCODER_FOLDERS)
    )
    if CONFIG in names and (WEIGHTS in names or not networks):
        networks.append("")
    for found in (networks, decoders):
        if found:
            only_one(folder, [folder / part for part in found])
    return [*networks, *decoders, *tables, *encoders]


def _within(part: str, names: Collection[str]) -> list[str]:
    """The names of the files of a part, without its own."""
    return [name.removeprefix(part) for name in names if name.startswith(part) and "/" not in name.removeprefix(part)]
