"""Files of tensors that are whole or absent."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from dmqbench.store.files import replacing


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors in the safetensors format, creating the folder; what lies in the host's memory is not copied."""
    with replacing(Path(path)) as temporary:
        save_file(dict(tensors), temporary, None if metadata is None else dict(metadata))
