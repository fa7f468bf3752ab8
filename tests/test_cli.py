"""The command: what is refused before anything starts, what is launched or answered, and how it ends."""

import json
import signal
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from dmqbench import cli
from dmqbench.config.metric_facts import OWN_METRICS
from dmqbench.config.names import DIAGNOSIS
from dmqbench.launch import sweeps
from dmqbench.models.folders import ModelError
from dmqbench.store.artifacts import Store

TINY = ("metrics.names=[psnr]", "metrics.pairs=4", "metrics.samples=4", "trainer=cpu")


ENTRIES = {
    "lpips": "extractor=lpips-alex@0 reference=fp@0",
    "fid": "extractor=inception-clean@0 reference=digits@0",
    "fd_digits": "extractor=digits@0 reference=digits@0",
}


def protocol_of(metric: str) -> str:
    return " ".join(
        [f"{metric}/{OWN_METRICS[metric].version}", "tool=stub", *ENTRIES.get(metric, "").split(), "#00000000"]
    )


class Stub(types.ModuleType):
    """Stands in for ``dmqbench.tasks.run``: remembers jobs, and publishes results or raises what ``fail`` says."""

    def __init__(self) -> None:
        super().__init__("dmqbench.tasks.run")
        self.jobs = []
        self.missing_weights = []
        self.fail = lambda job: None

    def carry_out(self, job):
        self.jobs.append(job)
        if error := self.fail(job):
            raise error
        store = Store(job.store_root)
        [planned] = [one for one in self.planned if one.job == job]
        result = {
            "method": job.method.name,
            "model": job.model.name,
            "bits": job.bits.name,
            "dataset": job.dataset.name,
            "metrics": {
                name: {"value": 1.0, "n": job.metrics.pairs, "protocol": protocol_of(name)}
                for name in job.metrics.names
                if name != "clip"
            },
            "unavailable": {name: "no prompts" for name in job.metrics.names if name == "clip"},
            "missing_weights": self.missing_weights,
            "config": job.config,
        }
        files = {"result.json": json.dumps(result), **({DIAGNOSIS: "{}"} if job.diagnose else {})}
        return store.replace_files("result", planned.result, files).path


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """The command in this process, on its own store, with nothing computed."""
    stub = Stub()
    launch = cli.launch

    def remembering(planned):
        stub.planned = planned
        return launch(planned)

    report = types.ModuleType("dmqbench.results.formats")
    report.print_results = lambda folders: print(f"table of {len(folders)}")  # type: ignore[attr-defined]
    plan = types.ModuleType("dmqbench.tasks.plan")
    plan.carry_out = lambda job: (stub.jobs.append(job), print("a plan"))[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dmqbench.tasks.run", stub)
    monkeypatch.setitem(sys.modules, "dmqbench.tasks.plan", plan)
    monkeypatch.setitem(sys.modules, "dmqbench.results.formats", report)
    monkeypatch.setattr(cli, "launch", remembering)
    monkeypatch.setattr(sweeps, "hash_once", lambda model: "0" * 64)
    monkeypatch.setenv("DMQBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield stub
    signal.signal(signal.SIGTERM, before)


def run(*arguments: str) -> int:
    return cli.main([*arguments, *TINY])


# ---- refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=rnt"], ["method=rnt", "nearest: rtn"]),
        (["bits=w8z8"], ["bits=w8z8", "nearest: w8a8"]),
        (["bits.weight=0"], ["bits.weight=0", "nearest: 1"]),
        (["metrics.names=[psrn]"], ["metrics.names=psrn", "nearest: psnr"]),
        (["sampler.stepz=3"], ["sampler.stepz=3", "nearest: sampler.steps"]),
        (["bits.weight=four"], ["bits.weight=four", "nearest: 4"]),
        (["method=quest"], ["method=quest", "not built yet"]),
        (["method=foreign"], ["method.path=null", "must be given"]),
        *(
            (["method=accuquant", f"method.trajectory_reconstruction.{wrong}"], [wrong, allowed])
            for wrong, allowed in (
                ("recipe=bad", "allowed: scales, joint"),
                ("gradient=bad", "identity"),
                ("start=bad", "allowed: fp, quantized"),
                ("horizon=0", "nearest: 1"),
                ("iterations=0", "nearest: 1"),
                ("checks=0", "nearest: 1"),
                ("horizn=5", "nearest: method.trajectory_reconstruction.horizon"),
            )
        ),
        (["metrics.inception=tensorflow"], ["metrics.inception=tensorflow", "nearest: legacy_tensorflow"]),
        (["metrics.weights=nowhere"], ["metrics.weights=nowhere", "not a folder"]),
        (["dataset.reference=nowhere"], ["dataset.reference=nowhere", "does not exist"]),
        (["+sweeps=dmeo"], ["sweeps=dmeo", "nearest: demo"]),
        (["--multrun"], ["--multrun", "nearest: --multirun"]),
        (["--config-name", "x"], ["--config-name=x"]),
        (["--experimental-rerun", "x.pickle"], ["--experimental-rerun=x.pickle"]),
        (["--config-dir", "nowhere"], ["--config-dir=nowhere"]),
        (["hydra/sweeper=optuna"], ["hydra/sweeper=optuna", "nearest: basic"]),
        (["method=fp,rtn"], ["method=fp,rtn", "-m"]),
        (["--cfg", "job", "-m", "method=fp,rtn"], ["--cfg=job"]),
        (["evaluate.samples=x.npz"], ["evaluate.samples=x.npz", "task=evaluate only"]),
        (["task=evaluate", "evaluate.samples=x.npz"], ["evaluate.samples=x.npz", "no such file"]),
        (["task=evaluate", "evaluate.fp_samples=x.npz"], ["evaluate.fp_samples=x.npz", "needs evaluate.samples"]),
        (["trainer.accelerator=gpu"], ["trainer.accelerator=gpu", "nearest: cpu"]),
    ],
)
def test_a_wrong_configuration_is_status_2_and_one_line(stub, capsys, monkeypatch, arguments, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("dmqbench: ") and all(word in line for word in words), line
    assert captured.out == "" and stub.jobs == []


def test_one_wrong_job_of_a_sweep_stops_all_before_the_first(stub, capsys, tmp_path):
    assert run("-m", "method=fp,rtn,q_diffusionn") == 2
    assert stub.jobs == [] and not (tmp_path / "runs").exists()
    assert "nearest: q_diffusion" in capsys.readouterr().err


def test_a_typo_inside_a_users_yaml_is_status_2(stub, capsys, tmp_path):
    (tmp_path / "bits").mkdir()
    (tmp_path / "bits" / "mine.yaml").write_text("defaults: [base_bits, _self_]\nweigth: 4\nactivation: 8\n")
    assert cli.main(["--config-dir", str(tmp_path), "bits=mine"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "weigth=4 in bits/mine.yaml" in line and "nearest: weight" in line


# ---- launched


def test_a_job_ends_with_its_result_folder(stub, capsys, tmp_path):
    assert run("method=rtn") == 0
    [job] = stub.jobs
    out = capsys.readouterr().out.splitlines()
    assert Path(out[-1]).parent == tmp_path / "runs" / "result" and out[0] == "table of 1"
    assert job.method.name == "rtn"


def test_a_multirun_runs_every_combination_once_and_full_precision_only_once(stub, capsys):
    assert run("-m", "method=fp,rtn", "bits=w4a6,w8a8") == 0
    assert [job.title for job in stub.jobs] == ["fp digits w32a32", "rtn digits w4a6", "rtn digits w8a8"]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "table of 3" and len(out) == 4


def test_the_demo_is_the_list_of_the_contract(stub):
    assert run("+sweeps=demo") == 0
    assert [(job.method.name, job.bits.name) for job in stub.jobs] == [
        ("fp", "w32a32"),
        ("rtn", "w8a8"),
        ("rtn", "w4a6"),
        ("q_diffusion", "w4a6"),
        ("dmq", "w4a6"),
        ("accuquant", "w4a6"),
        ("mpq_dm", "w4a6"),
        ("rtn", "w3a6"),
    ]


def test_the_command_line_wins_over_a_sweep_and_multiplies_it(stub):
    assert run("-m", "+sweeps=demo", "seed=1,2", "bits=w8a8") == 0
    assert {(job.method.name, job.bits.name, job.seed) for job in stub.jobs} == {
        ("fp", "w32a32", 0),
        *((name, "w8a8", seed) for name in ("rtn", "q_diffusion", "dmq", "accuquant", "mpq_dm") for seed in (1, 2)),
    }


def test_a_sweep_of_ones_own(stub, tmp_path, capsys):
    (tmp_path / "mine" / "sweeps").mkdir(parents=True)
    file = tmp_path / "mine" / "sweeps" / "two.yaml"
    file.write_text("overrides: [seed=4]\njobs:\n  - [method=rtn]\n  - [method=q_diffusion, seed=5]\n")
    assert run("--config-dir", str(tmp_path / "mine"), "+sweeps=two") == 0
    assert [(job.method.name, job.seed) for job in stub.jobs] == [("rtn", 4), ("q_diffusion", 5)]
    for text in (
        "job: [[a=b]]",
        "jobs: [method=rtn]",
        "jobs: []",
        "- [method=rtn]",
        "jobs: [[1]]",
        "jobs: [",
    ):
        file.write_text(text)
        capsys.readouterr()
        assert run("--config-dir", str(tmp_path / "mine"), "+sweeps=two") == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_failing_job_does_not_stop_the_others_and_says_how_to_run_it_again(stub, capsys, tmp_path):
    stub.fail = lambda job: ValueError("range\nis empty") if job.method.name == "rtn" else None
    assert run("-m", "method=rtn,fp,q_diffusion", "bits=w4a6") == 1
    assert [job.method.name for job in stub.jobs] == ["rtn", "fp", "q_diffusion"]
    [report] = (tmp_path / "runs" / "result").glob("*/error.json")
    error = json.loads(report.read_text())
    command = " ".join(["dmqbench", "method=rtn", "bits=w4a6", "'metrics.names=[psnr]'", *TINY[1:]])
    assert (error["class"], error["message"], error["command"]) == ("ValueError", "range is empty", command)
    captured = capsys.readouterr()
    assert "ValueError: range is empty" in captured.err and "1 of 3 jobs failed" in captured.err
    assert captured.out.splitlines()[0] == "table of 2"


@pytest.mark.parametrize(("error", "again"), [(ModelError("weights misfit"), False), (RuntimeError("once"), True)])
def test_what_cannot_succeed_is_not_advised_to_be_run_again(stub, capsys, error, again):
    stub.fail = lambda job: error
    assert run("method=rtn") == 1
    assert ("again with: dmqbench" in capsys.readouterr().err) == again


def test_the_report_of_a_failure_goes_when_the_job_is_done(stub, tmp_path):
    stub.fail = lambda job: RuntimeError("once")
    assert run("method=rtn") == 1
    stub.fail = lambda job: None
    assert run("method=rtn") == 0
    [folder] = (tmp_path / "runs" / "result").iterdir()
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "result.json", DIAGNOSIS}


@pytest.mark.parametrize("way", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_is_130_and_no_failure(stub, capsys, tmp_path, way):
    stub.fail = lambda job: way
    assert run("-m", "method=rtn,fp") == 130
    assert len(stub.jobs) == 1 and not list((tmp_path / "runs").rglob("error.json"))
    assert "interrupted" in capsys.readouterr().err


def test_a_store_that_cannot_be_written_is_one_line(stub, capsys, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert run("method=rtn", f"store.root={tmp_path / 'file' / 'runs'}") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_task_that_prints_its_answer_has_no_folder(stub, capsys):
    assert run("task=plan") == 0
    assert capsys.readouterr().out == "a plan\n"


def test_a_variant_is_named_on_the_command_line(stub):
    assert run("task=plan", "method=rtn", "method.variant=mine") == 0
    assert [job.method.variant for job in stub.jobs] == ["mine"]


@pytest.mark.parametrize("name", ["runs", "a ${b}"])
def test_hydra_leaves_nothing_beside_the_results(stub, tmp_path, monkeypatch, name):
    monkeypatch.setenv("DMQBENCH_RUNS", str(tmp_path / name))
    assert run("-m", "method=fp,rtn") == 0
    assert not (tmp_path / name / ".hydra").exists()
    assert run("-m", "method=fp,rtn", "seed=1", "hydra/launcher=basic") == 0
    assert [job.seed for job in stub.jobs] == [0, 0, 1]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not list((tmp_path / name / ".hydra").iterdir())


# ---- said before and after


def test_a_job_says_what_it_will_do_before_and_names_the_next_command(stub, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    stub.fail = lambda job: print("begun", file=sys.stderr)
    assert run("method=rtn", "bits=w4a6") == 0
    what, where, begun, *_, next_one = capsys.readouterr().err.splitlines()
    assert what == "dmqbench: rtn w4a6 on digits; 4 images, budget quick"
    assert where == f"dmqbench: results go to {tmp_path / 'runs'}" and begun == "begun"
    assert next_one == "dmqbench: next: dmqbench-report (page and picture), or dmqbench --help"
    assert run("method=rtn", "bits=w4a6") == 0
    assert f"everything is in the store {tmp_path / 'runs'}" in capsys.readouterr().err


def test_without_a_method_full_precision_is_there_to_compare_with(stub, capsys):
    assert run() == 0
    assert [job.method.name for job in stub.jobs] == ["fp", "rtn"]
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "table of 2" and "2 jobs: fp, rtn w4a8 on digits" in captured.err
    assert captured.out.splitlines()[-1] == str(sweeps.check(["method=rtn", *TINY]).folder)
    assert run("method.weight_range.candidates=40") == 0
    assert [job.method.name for job in stub.jobs[2:]] == ["rtn"], "full precision is in the store"


def test_the_table_has_the_full_precision_that_the_store_has(stub, capsys):
    assert run("method=fp") == 0
    assert run("method=rtn") == 0
    one, two = (line for line in capsys.readouterr().out.splitlines() if line.startswith("table"))
    assert (one, two) == ("table of 1", "table of 2")


def test_what_a_sweep_says_of_its_time_is_said_first(stub, tmp_path, capsys):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "two.yaml").write_text("takes: a second\njobs: [[method=rtn], [method=fp]]\n")
    assert run("--config-dir", str(tmp_path), "+sweeps=two") == 0
    assert capsys.readouterr().err.splitlines()[1].startswith("dmqbench: a second; results go to ")


# ---- answered


def test_a_job_in_the_store_is_answered_and_not_run(stub, capsys):
    assert run("method=rtn") == 0
    first = capsys.readouterr().out
    assert run("method=rtn", "tracker=disabled") == 0
    assert len(stub.jobs) == 1 and capsys.readouterr().out == first


@pytest.mark.parametrize("more", [["metrics.names=[psnr,ssim]"], ["metrics.pairs=3"]])
def test_a_job_that_asks_for_more_is_run(stub, more):
    assert run("method=rtn") == 0
    assert cli.main(["method=rtn", *TINY, *more]) == 0
    assert len(stub.jobs) == 2


@pytest.mark.parametrize("missing", [["clip"], []])
def test_a_metric_without_its_weights_is_tried_again_and_no_other(stub, missing):
    stub.missing_weights = missing
    for _ in range(2):
        assert cli.main(["method=rtn", *TINY, "metrics.names=[psnr,clip]"]) == 0
    assert len(stub.jobs) == (2 if missing else 1)


def test_a_diagnosis_that_a_result_lacks_is_made(stub):
    for diagnose, jobs in (("false", 1), ("false", 1), ("true", 2), ("true", 2), ("false", 2)):
        assert cli.main(["method=rtn", *TINY, f"diagnose={diagnose}"]) == 0
        assert len(stub.jobs) == jobs


def test_a_value_against_data_of_a_file_does_not_answer_for_the_shipped_data(stub, monkeypatch):
    monkeypatch.setitem(ENTRIES, "fd_digits", "extractor=digits@0 reference=digits:file@0")
    names = "metrics.names=[fd_digits]"
    for jobs in (1, 2):
        assert cli.main(["method=rtn", *TINY, names]) == 0
        assert len(stub.jobs) == jobs


@pytest.mark.parametrize("other", [["metrics.lpips=vgg"], ["dataset.reference=pictures"], ["metrics.inception=adm"]])
def test_a_metric_in_other_features_or_against_other_data_is_measured_anew(stub, other, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "pictures" / "0.png")
    names = "metrics.names=[psnr,lpips,fid,fd_digits]"
    for _ in range(2):
        assert cli.main(["method=rtn", *TINY, names]) == 0
    assert len(stub.jobs) == 1
    assert cli.main(["method=rtn", *TINY, names, *other]) == 0
    assert len(stub.jobs) == 2


def test_a_damaged_result_is_made_again(stub, tmp_path):
    assert run("method=rtn") == 0
    [result] = (tmp_path / "runs" / "result").glob("*/result.json")
    result.write_text("{}")
    assert run("method=rtn") == 0
    assert len(stub.jobs) == 2
