"""The table from which conditional LDM makes the token of a class: beside the network, in a folder of its own.

Needs no torch to be looked up.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmqbench.models.folders import CONFIG, ModelError, network_folder, read_config
from dmqbench.models.weight_files import tensor_shapes, weight_files

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "class_embedder"
CLASS_NAME = "ClassEmbedder"
TABLE = "embedding.weight"
"""The one tensor of its file, [rows, width]; the rows behind the classes mean "no class"."""

ENTRIES = "_class_entries"
"""How many rows there are: what is added to the ``config.json`` of a network, which does not know it."""


def class_table_folder(folder: Path) -> Path | None:
    """Return the folder of the table within a model's; None where no class is a token."""
    part = folder / FOLDER
    return part if (part / CONFIG).is_file() else None


def network_config_of(folder: Path, advice: str = "") -> dict[str, Any]:
    """Return the ``config.json`` of the network in a model's folder, with the number of rows of a table beside it.

    Raises:
        ModelError: there is none, or the table does not fit the network.
    """
    config = read_config(network_folder(folder, advice) / CONFIG)
    part = class_table_folder(folder)
    if part is None:
        return config
    rows, width = _shape(part)
    if config.get("cross_attention_dim") != width:
        raise ModelError(
            f"{part}: its tokens are of width {width}, and cross_attention_dim={config.get('cross_attention_dim')} "
            "in the network beside it"
        )
    return {**config, ENTRIES: rows}


def _shape(part: Path) -> tuple[int, int]:
    name, shapes = read_config(part / CONFIG).get("_class_name"), tensor_shapes(part)
    if name != CLASS_NAME or [*shapes] != [TABLE] or len(shapes[TABLE]) != 2:
        raise ModelError(f"{part}: a {name} with {', '.join(shapes)}; allowed: {CLASS_NAME} with {TABLE} [rows, width]")
    rows, width = shapes[TABLE]
    return rows, width


def load_class_table(part: Path) -> "Tensor":
    """Return the table, float32 [rows, width]; ModelError if a value is not finite."""
    from safetensors.torch import load_file

    [path] = weight_files(part)
    table = load_file(path)[TABLE].float()
    if not table.isfinite().all():
        raise ModelError(f"{part}: the values of {TABLE} are not all finite")
    return table
