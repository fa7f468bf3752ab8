"""A run store filled by hand: results, samples and diagnoses as jobs write them, in milliseconds."""

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors.numpy import save_file

from dmqbench.eval.measurement import Floor, Measurement
from dmqbench.eval.protocol import Protocol
from dmqbench.results import formats
from dmqbench.results.result import Result
from dmqbench.store.artifacts import Store

REFERENCE = "f" * 16
SAMPLES = 4


def measured(metric: str, value: float | None, half: float = 0.1, higher: bool = True, **changes) -> dict:
    """A record of ``metric`` as the evaluation writes it."""
    paired = not metric.startswith("fd")
    entries = {"version": 1, "tool": "dmqbench", "rounding": "uint8", "n": 256 if paired else 512, "seed": 0}
    entries |= {"sampler": "ddim", "timesteps": tuple(range(20)), "eta": 0.0, "guidance": 1.0, "chunk": 32}
    entries |= {"engine": "simulate", "reference": "fp"}
    protocol = Protocol(metric=metric, **entries | changes)
    floor = Floor("numerical", 92.13, 256) if paired else Floor("other_seed", 0.6125, 512)
    interval = None if value is None else (value - half, value + half)
    return Measurement(value, interval, protocol.n, protocol.id, value is None, higher, floor).to_json()


class Bench:
    """A run store that is filled by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.count = 0
        self.samples(REFERENCE, 0)

    def publish(self, kind: str, id: str, files: dict[str, dict | str]) -> Path:
        folder = self.store.work(id)
        for name, content in files.items():
            if isinstance(content, str):
                (folder / name).write_text(content)
            else:
                save_file(content, folder / name)
        return self.store.publish(kind, id, folder, {}).path

    def samples(self, id: str, error: int) -> None:
        images = (np.arange(SAMPLES * 64).reshape(SAMPLES, 1, 8, 8) % 200 + error).astype(np.uint8)
        chunk = {"images": images, "state": images.astype(np.float32)}
        self.publish("samples", id, {"chunk_00000.safetensors": chunk})

    def job(self, method: str, bits: str, psnr: float | None, fd: float = 1.0, **changes) -> Path:
        """Publish one result; protocol entries in ``protocol``, other keys replace those of the record."""
        self.count += 1
        id = changes.pop("id", f"{self.count:016x}")
        scope = None if method == "fp" else changes.get("scope", "common")
        entries = {"scope": scope} | changes.pop("protocol", {})
        per_image, found = changes.pop("per_image", None), changes.pop("diagnosis", None)
        if method != "fp":
            self.samples(id, 5)
        record = {
            "job_id": id, "method": method, "model": "digits", "bits": bits, "scope": "common",
            "ranges": "method", "dataset": "digits", "seed": 0, "config": {}, "unavailable": {},
            "environment": {}, "embedded": True,
            "metrics": changes.pop("metrics", {}) | {
                "psnr": measured("psnr", psnr, **entries),
                "fd_digits": measured("fd_digits", fd, 0.2, higher=False, **entries),
            },
            "cost": {"size_mib": {"all_layers": 1.0625, "packed": None}, "simulated": method != "fp"},
            "timing": {"calibrate_s": 240.0},
            "samples": {"fp": REFERENCE, "quantized": REFERENCE if method == "fp" else id},
        } | changes  # fmt: skip
        values = json.dumps({"psnr": per_image or [psnr] * 3})
        files = {"result.json": json.dumps(record), "per_image.json": values}
        return self.publish("result", id, files | ({} if found is None else {"diagnosis.json": json.dumps(found)}))

    def results(self) -> list[Result]:
        return formats.load_results(self.root)

    def shown(self, width: int = 140) -> str:
        console = Console(width=width, color_system=None, force_terminal=False)
        with console.capture() as captured:
            formats.print_results(self.root, console)
        return captured.get()


def diagnosis(scale: float = 1e-3, steps: int = 4, layers: int = 3) -> dict:
    """A diagnosis in which errors are of the order ``scale`` and add up."""
    local = [scale * (1 + step) for step in range(steps)]
    accumulated = [0.0, *np.cumsum(local).tolist()]
    return {
        "version": 1,
        "stream": "val",
        "trajectories": 8,
        "timesteps": list(range(900, 900 - 10 * steps, -10)),
        "steps": {
            "local": local,
            "injected": [value / 2 for value in local],
            "accumulated": accumulated,
            "shift": [value / 4 for value in accumulated],
        },
        "layers": {
            "names": [f"blocks.{number}.conv" for number in range(layers)],
            "skip": [number == 0 for number in range(layers)],
            "calls": [0, steps - 1],
            "error": [[scale, 2 * scale]] * layers,
        },
        "proxies": {
            "layer_error": float(np.log10(scale)),
            "injected_error": float(np.log10(sum(local) / 2)),
            "accumulated_error": float(np.log10(accumulated[-1])),
        },
    }


def fill(bench: Bench) -> None:
    """Make results of three methods at four bit-widths."""
    bench.job("rtn", "w3a6", 22.94, 5.95)
    bench.job("rtn", "w4a6", 29.44, 4.2, per_image=[29.0, 29.5, 29.9])
    bench.job("q_diffusion", "w4a6", 33.05, 3.1, per_image=[33.0, 33.1, 33.2])
    bench.job("fp", "w32a32", None, 3.0)
    bench.job("rtn", "w8a8", 48.75, 3.2)
