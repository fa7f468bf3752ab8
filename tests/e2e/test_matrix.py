"""Every method and every command on a twin of every family: works, or the reason, as docs/reference/families.md says.

Run with MATRIX=1 and one process, this file writes down what it finds, and the page.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from e2e.commands import FEW, dmqbench, result_folder
from e2e.matrix import COMMANDS, METHODS, NETWORKS, PAGE, WORKS, built_methods, page, record, recorded
from matplotlib.figure import Figure
from safetensors.torch import load_file
from tiny import CLASSES, text_unet
from twins import CLASSES_AS_TOKENS, LEAST, PIPELINES, SAMPLED, TWINS, asked_of, save_twin

from dmqbench import api
from dmqbench.config.names import COUNTING_TASKS
from dmqbench.models.class_table import network_config_of
from dmqbench.models.families import families, kind_of

ONCE = [f"{item.partition('=')[0]}=1" for item in FEW if "iterations" in item]
BUDGET = (*ONCE, "budget.trajectories=2", "budget.validation=2", "budget.samples=4", "budget.batch=2")
SIZES = (
    *(*FEW, *BUDGET, "sampler.steps=2", "sampler.chunk=4"),
    *("metrics.samples=2", "metrics.pairs=2", "metrics.names=[psnr]", "model=local"),
)
GUIDED = {"ldm_classes": 3.0, "dit": 1.5, "sd": 3.0, "pixart": 3.0, "flux": 3.5}
EVALUATED, CALIBRATED = ["a red fox", "two foxes", "", "snow"], ["rain", "fog", "a lake", "sun"]
FURTHER = {
    ("dit", "q_diffusion"): "bits.scope=paper",
    ("sdxl", "q_diffusion"): "bits.scope=paper",
    ("dit", "efficient_dm"): "bits.granularity=token diagnose=true",
}
"""Options that a cell has besides: attention that is quantized, ranges of tokens, errors by step and layer."""
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folders of the twins, a run store for each, and prompts; pictures for people are set up, not painted."""
    root = tmp_path_factory.mktemp("matrix")
    for family in TWINS:
        save_twin(family, root / family)
    for name, prompts in (("eval", EVALUATED), ("cal", CALIBRATED)):
        (root / f"{name}.txt").write_text("\n".join(prompts) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).write_bytes(b""))
        yield root


def overrides_of(places: Path, family: str) -> list[str]:
    words = [f"model.path={places / family}", f"sampler.guidance={GUIDED.get(family, 1.0)}"]
    words += SAMPLED.get(family, "").split()
    if family in PIPELINES:
        words += [f"inputs.prompts={places / 'eval.txt'}", f"inputs.calibration_prompts={places / 'cal.txt'}"]
    return [*words, f"model.classes={CLASSES}"] if family == CLASSES_AS_TOKENS else words


def carried_out(places: Path, family: str, overrides: str) -> tuple[str, str]:
    """The outcome of a command as the matrix has it, and its standard output."""
    words = (*SIZES, *overrides_of(places, family), *overrides.split())
    status, output, errors = dmqbench(places / f"{family}_runs", *words)
    assert status in (0, 2), errors
    lines = [line.removeprefix("dmqbench: ") for line in errors.splitlines()]
    said = [line for line in lines if status or line.partition(": ")[0].endswith("_scaling")]
    assert len(said) <= 1 and said != [""] and (said or not status)
    kind = "refused" if status else WORKS
    return ": ".join([kind, *said]), output


def check(family: str, column: str, outcome: str) -> None:
    """Fail unless the matrix says so."""
    if os.environ.get("MATRIX"):
        record(family, column, outcome)
    assert outcome == recorded()[family][column]


CELLS = [(family, column) for family in NETWORKS for column in (*COMMANDS, *METHODS)]


@pytest.mark.parametrize(("family", "command"), [cell for cell in CELLS if cell[1] in COMMANDS])
def test_a_command(places, family, command):
    if command == "evaluate" and not (places / f"{family}_runs" / "samples").exists():
        carried_out(places, family, COMMANDS["sample"])
    outcome, output = carried_out(places, family, COMMANDS[command])
    check(family, command, outcome)
    if outcome.startswith(WORKS):
        found = output.strip().splitlines()[-1]
        assert json.loads(found) if command in COUNTING_TASKS else any(Path(found).iterdir())


@pytest.mark.parametrize(("family", "method"), [cell for cell in CELLS if cell[1] in METHODS])
def test_a_method(places, family, method):
    outcome, output = carried_out(places, family, f"{METHODS[method]} {FURTHER.get((family, method), '')}")
    check(family, method, outcome)
    if not outcome.startswith(WORKS):
        return
    result = json.loads((result_folder(output) / "result.json").read_text())
    quantized, psnr = result["cost"]["quantized_layers"], result["metrics"]["psnr"]
    assert (quantized == 0 and psnr["exact"]) if method == "fp" else (quantized > 5 and 15 < psnr["value"] < 100)


def denoiser_of_classes(places: Path) -> api.Denoiser:
    """What stands for the pipeline that diffusers lacks."""
    table = load_file(places / CLASSES_AS_TOKENS / "class_embedder" / "diffusion_pytorch_model.safetensors")
    rows = table["embedding.weight"][:, None]
    given = api.Conditions({"encoder_hidden_states": rows[:-1]}, null={"encoder_hidden_states": rows[-1]})
    call = lambda network, x, timestep, cond: network(x, timestep, **cond).sample  # noqa: E731
    return api.Denoiser("classes", text_unet(**LEAST), (4, 8, 8), DDIMScheduler(clip_sample=False), call, given)


def drawn(family: str, pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    if family in PIPELINES:
        asked |= asked_of(family, steps=2, guidance=GUIDED.get(family, 1.0)) | {"prompt": EVALUATED[:2]}
    else:
        asked |= {"class_labels": [1, 2], "guidance_scale": GUIDED["dit"]} if family == "dit" else {"batch_size": 2}
    return torch.from_numpy(pipe(**asked).images)


@pytest.mark.parametrize("family", [family for family in NETWORKS if TWINS[family]])
def test_a_script(places, family, tmp_path):
    pipe, guidance = TWINS[family](), GUIDED.get(family, 1.0)
    before = drawn(family, pipe)
    asked = {"steps": 2, "guidance": guidance, "store": places / f"{family}_runs", "overrides": BUDGET}
    if family in PIPELINES:
        with pytest.raises(api.ConfigError, match="prompts"):
            api.quantize_(pipe, "rtn", "w4a6", **asked)
        asked["prompts"] = ["fog", "a\nlake", "sun"]
    api.quantize_(pipe, "rtn", "w4a6", **asked)
    quantized = drawn(family, pipe)
    assert 0 < (quantized - before).abs().max() < 0.5
    check(family, "quantize_", WORKS)
    api.save(pipe, tmp_path / "saved")
    loaded = api.load(tmp_path / "saved")
    assert torch.equal(drawn(family, loaded), quantized)
    said = api.report(loaded)
    assert said == api.report(pipe) and len(said.quantized) > 5
    assert {"first or last layer", "embedding of time, label or text"} == {*said.full_precision.values()}
    check(family, "save, load", WORKS)


def test_a_script_where_diffusers_has_no_pipeline(places, tmp_path):
    denoiser, family = denoiser_of_classes(places), CLASSES_AS_TOKENS
    store = places / f"{family}_runs"
    api.quantize_(denoiser, "rtn", "w4a6", steps=2, guidance=GUIDED[family], store=store, overrides=BUDGET)
    check(family, "quantize_", f"{WORKS}: as a `Denoiser`, for diffusers has no pipeline of it")
    with pytest.raises(api.ModelError) as refused:
        api.save(denoiser, tmp_path / "saved")
    check(family, "save, load", f"refused: {refused.value}")


def test_the_matrix_has_every_family_method_command_and_network_that_is_shipped(places):
    assert {*TWINS} == {*NETWORKS} and {*METHODS} == built_methods()
    kinds = {kind_of(network_config_of(places / family)) for family in TWINS}
    assert kinds == {*families()}


@pytest.mark.parametrize("family", NETWORKS)
def test_a_twin_is_of_one_mebibyte_at_most(places, family):
    assert sum(path.stat().st_size for path in (places / family).rglob("*") if path.is_file()) <= MEBIBYTE


def test_the_page_says_what_was_found():
    assert PAGE.read_text() == page(recorded())
