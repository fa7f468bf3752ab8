"""Time of ``dmqbench-report`` on a store with 200 results: table, page and picture. Target: under 10 s.

Run: python -m benchmarks.reports
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.store.artifacts import Store
from dmqbench.store.files import json_text, load_json, short_hash
from dmqbench.tasks.run import carry_out as run_job

RESULTS = 200
START = "import sys; from dmqbench.report import main; sys.exit(main())"
BITS = ("w8a8", "w4a8", "w4a6", "w4a4", "w3a6")


def fill(root: Path) -> None:
    """One real job at full size, then copies of its result under other names, bits and seeds, with other values."""
    folder = run_job(make_job(compose(["method=rtn", f"store.root={root}", "tracker.mode=disabled"])))
    names = ("result.json", "per_image.json", "diagnosis.json")
    content = {name: load_json(folder / name) for name in names}
    store, chance = Store(root), random.Random(0)
    for number in range(RESULTS - 1):
        id = short_hash({"copy": number})
        result = json.loads(json.dumps(content["result.json"]))
        seed, rest = number % 4, number // 4
        result |= {"job_id": id, "method": f"method_{rest // len(BITS)}", "bits": BITS[rest % len(BITS)], "seed": seed}
        shift = chance.uniform(-5, 5)
        images = {
            name: [value if value is None else value * (1 + shift / 50) for value in values]
            for name, values in content["per_image.json"].items()
        }
        for record in result["metrics"].values():
            record["value"] *= 1 + shift / 50
            record["ci95"] = [end * (1 + shift / 50) for end in record["ci95"]]
        files = {"result.json": result, "per_image.json": images, "diagnosis.json": content["diagnosis.json"]}
        store.replace_files("result", id, {name: json_text(value) for name, value in files.items()})


def main() -> None:
    """Print seconds and the sizes of what was written."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        fill(root)
        print("| store | s | page, MiB |\n|---|---|---|")
        for against in ((), ("--against", "method_0")):
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", START, str(root), *against], check=True, capture_output=True, text=True
            )
            seconds = time.perf_counter() - started
            size = (root / "report.html").stat().st_size / 2**20
            print(f"| {RESULTS} results {' '.join(against)} | {seconds:.1f} | {size:.1f} |", flush=True)


if __name__ == "__main__":
    main()
