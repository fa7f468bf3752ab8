"""What the processes of test_store_kill.py do: make artifacts of every kind, with known contents."""

import hashlib
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dmqbench.store.artifacts import Store

CHUNKS = 4


def artifact_id(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()[:16]


def content(*what: object, size: int = 20_000) -> bytes:
    """Bytes that depend on ``what`` alone."""
    return random.Random(repr(what)).randbytes(size)


def expected(kind: str, id: str) -> dict[str, bytes]:
    """Files of a finished artifact."""
    if kind == "quantized":
        return {name: content(id, name) for name in ("weights", "plan")}
    if kind == "samples":
        return {f"chunk-{number}": content(id, number) for number in range(CHUNKS)}
    return {name: content(id, name, "second") for name in ("result.json", "per_image.json")}


def make_quantized(store: Store, id: str) -> None:
    with store.lock("quantized", id):
        if store.verified("quantized", id) is None:
            folder = store.work(id)
            for name, data in expected("quantized", id).items():
                (folder / name).write_bytes(data)
            store.publish("quantized", id, folder, {"id": id})


def make_samples(store: Store, id: str) -> None:
    for name, data in expected("samples", id).items():
        store.append_file("samples", id, name, lambda path, data=data: path.write_bytes(data))


def make_result(store: Store, id: str) -> None:
    """Two generations: a result that is finished, and then gets another metric."""
    with store.lock("result", id):
        finished = store.verified("result", id)
        if finished is None:
            first = {name: content(id, name, "first") for name in expected("result", id)}
            finished = store.replace_files("result", id, first)
        if finished.files["result.json"].read_bytes() != expected("result", id)["result.json"]:
            store.replace_files("result", id, expected("result", id))


MAKE = {"quantized": make_quantized, "samples": make_samples, "result": make_result}


def jobs(first: int, last: int) -> Iterator[tuple[str, str]]:
    for number in range(first, last):
        for kind in MAKE:
            yield kind, artifact_id(number)


def work(root: Path, ledger: Path, first: int, last: int) -> None:
    """Make what is not there yet of the artifacts from ``first``, and note in ``ledger`` what is finished."""
    noted = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store = Store(root)
    for kind, id in jobs(first, last):
        MAKE[kind](store, id)
        os.write(noted, f"{kind} {id}\n".encode())


def hold(root: Path) -> None:
    """Take a lock, say so, and never let it go."""
    with Store(root).lock("quantized", artifact_id(0)):
        sys.stdout.write("locked\n")
        sys.stdout.flush()
        time.sleep(600)


def crash_at(operation: int, kind: str, root: Path) -> bool:
    """Make one artifact in a child process that dies just before its n-th operation on the disk.

    Returns whether it lived to the end, because there are fewer operations.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def dying(name):
            real = getattr(os, name)

            def wrapper(*args, **named):
                nonlocal count
                count += 1
                if count > operation:
                    os._exit(137)
                return real(*args, **named)

            return wrapper

        for name in ("open", "replace", "rename", "unlink", "mkdir", "fsync", "rmdir", "write"):
            setattr(os, name, dying(name))
        MAKE[kind](Store(root), artifact_id(0))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def crash_everywhere(kind: str, root: Path) -> int:
    """Crash at every operation in a fresh store, check what is left, finish; return the number of crashes."""
    id = artifact_id(0)
    for operation in range(10_000):
        place = root / f"{operation}"
        lived = crash_at(operation, kind, place)
        check_nothing_is_wrong(place, kind, id)
        MAKE[kind](Store(place), id)
        found = {name: path.read_bytes() for name, path in Store(place).verified_files(kind, id).items()}
        if found != expected(kind, id):
            raise AssertionError(f"crash at operation {operation}: the artifact could not be finished")
        if (place / ".aside").exists() or list(place.rglob(".tmp-*")) or list(place.rglob(".next")):
            raise AssertionError(f"crash at operation {operation}: something was put aside or left over")
        if lived:
            return operation
    raise AssertionError("never finished")


def check_nothing_is_wrong(root: Path, kind: str, id: str) -> None:
    generations = [expected(kind, id)]
    if kind == "result":
        generations.append({name: content(id, name, "first") for name in expected(kind, id)})
    found = {name: path.read_bytes() for name, path in Store(root).verified_files(kind, id).items()}
    allowed = [whole for whole in generations if found == whole] or not found
    partial = kind == "samples" and all(expected(kind, id).get(name) == data for name, data in found.items())
    if not (allowed or partial):
        raise AssertionError(f"{kind} {id} is verified but wrong: {sorted(found)}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["work", root, ledger, first, last]:
            work(Path(root), Path(ledger), int(first), int(last))
        case ["hold", root]:
            hold(Path(root))
        case ["crash", kind, root]:
            sys.stdout.write(f"{crash_everywhere(kind, Path(root))}\n")
