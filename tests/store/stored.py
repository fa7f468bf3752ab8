"""Artifacts of two small files, their damage, and what then lies in a store."""

import random
from pathlib import Path

from dmqbench.store.artifact import Artifact
from dmqbench.store.artifacts import Store

ID = "0123456789abcdef"
OTHER = "fedcba9876543210"


def publish(the_store: Store, id: str = ID, weights: bytes = b"w" * 5000, plan: bytes = b"{}") -> Artifact:
    folder = the_store.work(id)
    (folder / "weights").write_bytes(weights)
    (folder / "plan").write_bytes(plan)
    return the_store.publish("quantized", id, folder, {"layers": 3})


def aside(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".aside").glob("*"))


def everything(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def corrupt(path: Path, way: str, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if way == "deletion":
        path.unlink()
        return
    if way == "bit flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif way == "truncation":
        del content[chance.randrange(len(content)) :]
    else:
        start = chance.randrange(len(content))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)
