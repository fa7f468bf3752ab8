"""Restoration and editing as configurations: what is refused, what enters ids, what shares a table."""

import json

import numpy as np
import pytest
from handmade import Bench, measured
from PIL import Image
from tiny import save_pipeline, unet

from dmqbench.config.checked_job import full_precision
from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.ids import inputs_id, job_ids
from dmqbench.config.job import make_job
from dmqbench.results.tables import comparable_tables, why_apart

WEIGHTS = "0" * 64
EDIT = ("task_kind=edit",)
RESTORE = ("model=digits_sr",)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def job(*overrides: str):
    return make_job(compose(overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        job(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def archive(path, count: int = 8, size: int = 16, seed: int = 0, channels: int = 1):
    shape = (count, size, size, channels)
    np.savez(path, np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    return path


# ---- what a job is


def test_the_model_chooses_the_kind_of_its_task():
    assert (job().task_kind, job().strength) == ("generate", 1.0)
    restoring = job(*RESTORE)
    assert (restoring.task_kind, restoring.strength, restoring.model.sample_shape) == ("restore", 1.0, (1, 16, 16))
    assert restoring.metrics.names[0] == "psnr_truth"
    assert (job(*EDIT).strength, job(*EDIT, "edit.strength=0.25").strength) == (0.5, 0.25)


def test_rows_name_the_strength_of_an_edit():
    assert job(*EDIT, "method=rtn", "bits=w4a6").title == "rtn digits edit 0.5 w4a6"
    assert job("method=rtn", "bits=w4a6").title == "rtn digits w4a6"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("task_kind=edti",), "task_kind=edti is not known; nearest: edit"),
        (("task_kind=restore",), "task_kind=restore needs a model that reads an image, such as digits_sr"),
        ((*RESTORE, "task_kind=generate"), "task_kind=generate does not fit model=digits_sr"),
        ((*RESTORE, "task_kind=edit"), "nearest: restore"),
        (("edit.strength=0.3",), "edit.strength=0.3 changes nothing with task_kind=generate"),
        ((*EDIT, "edit.strength=0"), "edit.strength=0.0 is not possible"),
        ((*EDIT, "edit.strength=1.5"), "nearest: 1"),
        ((*EDIT, "sampler=pndm", "sampler.skip_prk=false"), "Runge-Kutta"),
        ((*RESTORE, "sampler.guidance=2"), "needs a model with classes"),
        (("inputs.images=x.npz",), "inputs.images=x.npz is read by task_kind=restore and edit only"),
        ((*EDIT, "inputs.images=x.npz"), "inputs.images=x.npz cannot be used: there is no such"),
        ((*RESTORE, "model.condition=blur"), "model.condition=blur is not known; nearest: super_resolution"),
        ((*RESTORE, "model.condition=null"), "changes nothing without model.condition"),
        ((*RESTORE, "model.condition_channels=2"), "reads 2 channels and predicts 1"),
        ((*RESTORE, "model.condition_channels=null"), "needs model.condition"),
        ((*RESTORE, "model.condition_factor=3"), "divide the size 16"),
        ((*RESTORE, "model.condition_factor=null"), "divide the size 16"),
        (("model.condition_factor=4",), "changes nothing without model.condition"),
    ],
)
def test_what_cannot_be_is_one_line(overrides, said):
    assert said in refusal(*overrides)


@pytest.mark.parametrize("task", [EDIT, RESTORE])
def test_images_must_be_of_the_models_size_and_enough_for_three_streams(tmp_path, task):
    assert job(*task, f"inputs.images={archive(tmp_path / 'fits.npz')}")
    small = refusal(*task, f"inputs.images={archive(tmp_path / 'small.npz', size=4)}")
    assert "holds images of 1×4×4" in small and "makes 1×16×16" in small
    assert "holds images of 3×16×16" in refusal(*task, f"inputs.images={archive(tmp_path / 'c.npz', channels=3)}")
    assert "holds 3 images" in refusal(*task, f"inputs.images={archive(tmp_path / 'few.npz', count=3)}")
    (tmp_path / "text.npz").write_text("no archive")
    assert "cannot be used" in refusal(*task, f"inputs.images={tmp_path / 'text.npz'}")


def test_a_model_without_images_of_its_own_needs_some(tmp_path):
    folder = save_pipeline(tmp_path, unet())
    local = ("model=local", f"model.path={folder}", *EDIT)
    assert "inputs.images=null must be given: no images of dataset=none" in refusal(*local)
    assert "images of dataset=digits are 1×16×16" in refusal(*local, "dataset=digits")
    assert job(*local, f"inputs.images={archive(tmp_path / 'mine.npz', size=8)}").task_kind == "edit"


def test_a_stage_with_nothing_to_train_is_refused():
    accuquant = ("method=accuquant", "method.trajectory_reconstruction.recipe=scales")
    assert "recipe=scales trains activation scales, and bits.activation=32 has none; nearest: joint" in refusal(
        *accuquant, "bits=w4a32"
    )
    assert job(*accuquant, "bits=w4a8") and job("method=accuquant", "bits=w4a32")


def test_images_made_elsewhere_are_not_known_to_be_edits(tmp_path):
    theirs = archive(tmp_path / "theirs.npz")
    for task in (EDIT, RESTORE):
        assert "images made elsewhere" in refusal(*task, "task=evaluate", f"evaluate.samples={theirs}")


def test_a_network_of_other_channels_is_refused_unless_its_yaml_says_why(tmp_path):
    folder = save_pipeline(tmp_path, unet(in_channels=2, class_entries=None))
    local = ("model=local", f"model.path={folder}", f"inputs.images={archive(tmp_path / 'mine.npz', size=8)}")
    assert "needs model.condition" in refusal("model=local", f"model.path={folder}")
    said = ("model.condition=super_resolution", "model.condition_channels=1", "model.condition_factor=2")
    made = job(*local, "task_kind=restore", *said)
    assert made.model.sample_shape == (1, 8, 8)


# ---- ids


def ids_of(*overrides: str):
    return job_ids(job("method=rtn", "bits=w4a6", *overrides), WEIGHTS)


def test_every_fact_of_the_task_is_in_the_ids(tmp_path):
    first, second = (archive(tmp_path / f"{seed}.npz", seed=seed) for seed in (0, 1))
    variants = [
        (),
        EDIT,
        (*EDIT, "edit.strength=1"),
        (*EDIT, "edit.strength=0.51"),
        (*EDIT, f"inputs.images={first}"),
        (*EDIT, f"inputs.images={second}"),
        RESTORE,
        (*RESTORE, f"inputs.images={first}"),
        (*RESTORE, "model.condition_factor=2"),
    ]
    found = [ids_of(*variant) for variant in variants]
    for name in ("trajectories", "quantized", "samples", "result"):
        assert len({getattr(ids, name) for ids in found}) == len(variants), name
    reference = [job_ids(full_precision(job(*variant)), WEIGHTS).samples for variant in variants]
    assert len(set(reference)) == len(variants)


def test_the_same_images_in_another_file_are_the_same_job(tmp_path):
    first, copy = archive(tmp_path / "a.npz"), archive(tmp_path / "b.npz")
    ours, theirs = (ids_of(*EDIT, f"inputs.images={path}") for path in (first, copy))
    assert ours == theirs
    assert inputs_id(job(*EDIT)) == inputs_id(job(*EDIT, "method=fp"))


def test_configurations_of_generation_say_nothing_of_images():
    assert not {"task_kind", "inputs", "edit"} & job().config.keys()
    assert job(*EDIT).config["edit"] == {"strength": 0.5}


# ---- tables


def test_tasks_and_strengths_have_tables_of_their_own(tmp_path):
    bench = Bench(tmp_path / "runs")
    tasks = [{}, {"task_kind": "edit", "strength": 0.5}, {"task_kind": "edit", "strength": 0.75}]
    for task in tasks:
        bench.job("rtn", "w4a6", 30.0, **task)
        bench.job("dmq", "w4a6", 31.0, **task)
        bench.job("fp", "w32a32", None, **task)
    tables = comparable_tables(bench.results())
    assert [{row.task for row in table.rows} for table in tables] == [
        {None},
        {"edit strength 0.5"},
        {"edit strength 0.75"},
    ]
    assert [len(table.rows) for table in tables] == [3, 3, 3]
    assert "task generate | edit strength 0.5 | edit strength 0.75" in str(why_apart(tables))
    assert "digits (embedded) · edit strength 0.5 · scope common" in bench.shown()


def test_the_protocol_names_the_task_only_where_there_is_one():
    plain = measured("psnr", 30.0)["protocol"]
    edited = measured("psnr", 30.0, task="edit", strength=0.5)["protocol"]
    assert "task=" not in plain and "task=edit strength=0.5" in edited
    assert len({plain, edited, measured("psnr", 30.0, task="edit", strength=0.6)["protocol"]}) == 3


def test_what_samples_were_made_from_lies_above_them_in_the_picture_and_on_the_page(tmp_path):
    from PIL import Image

    from dmqbench.results.page.document import page
    from dmqbench.results.plots.samples import picture_of

    bench = Bench(tmp_path / "runs")
    given = "1" * 16
    bench.samples(given, 50)
    plain = bench.job("rtn", "w4a6", 30.0)
    record = json.loads((plain / "result.json").read_text())
    edited = bench.job(
        "dmq", "w4a6", 31.0, task_kind="edit", strength=0.5, samples=record["samples"] | {"input": given}
    )
    without, with_input = (
        Image.open(picture_of(bench.root, [folder], tmp_path / f"{name}.png", columns=4))
        for name, folder in (("plain", plain), ("edited", edited))
    )
    assert with_input.height > without.height
    assert f'"input": "{given}"' in page(bench.root, bench.results()).replace('":"', '": "')


# ---- what images are compared with


def saved_pictures(folder, damage=lambda path: None):
    folder.mkdir()
    for number in range(3):
        Image.new("L", (16, 16), number).save(folder / f"{number}.png")
    damage(folder / "2.png")
    return folder


def saved_arrays(path, **arrays):
    np.savez(path, **arrays)
    return path


def cut(path, at=-9):
    path.write_bytes(path.read_bytes()[:at])
    return path


def flipped(path):
    """One byte of the pixels is another: only their checksum tells."""
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 12] ^= 255
    path.write_bytes(content)


GAUSSIAN = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
DAMAGED = {
    "an empty folder": (lambda p: [p.mkdir(), p][1], "no .png"),
    "no archive": (lambda p: [p.write_bytes(b"text"), p][1], "not an npz archive"),
    "a picture that is cut": (lambda p: saved_pictures(p, lambda last: cut(last, 50)), "2.png: damaged"),
    "a picture of other pixels": (lambda p: saved_pictures(p, flipped), "2.png: damaged"),
    "a picture of another size": (
        lambda p: saved_pictures(p, lambda last: Image.new("L", (8, 8)).save(last)),
        "2.png: is 1×8×8",
    ),
    "an archive that is cut": (lambda p: cut(saved_arrays(p, arr_0=np.zeros((9, 16, 16, 1), np.uint8))), "damaged"),
    "floats": (lambda p: saved_arrays(p, arr_0=np.zeros((9, 16, 16, 1))), "uint8 in"),
    "statistics that are cut": (lambda p: cut(saved_arrays(p, **GAUSSIAN), -(2**20)), "damaged"),
    "statistics of no numbers": (
        lambda p: saved_arrays(p, mu=np.full(2048, np.nan), sigma=np.eye(2048)),
        "mu must hold finite floats",
    ),
    "half of the statistics": (lambda p: saved_arrays(p, mu=np.zeros(2048)), "holds no sigma"),
    "statistics of two sizes": (
        lambda p: saved_arrays(p, mu=np.zeros(2048), sigma=np.eye(3)),
        "got (2048,) and (3, 3)",
    ),
    "pickled statistics": (lambda p: saved_arrays(p, mu=np.zeros(9, object), sigma=np.eye(9)), "Object arrays"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_reference_is_refused_before_anything_runs(tmp_path, damage):
    write, said = DAMAGED[damage]
    path = write(tmp_path / "reference.npz")
    given = ("method=fp", f"dataset.reference={path}", "metrics.names=[fd_digits]")
    for task in ("run", "plan", "evaluate"):
        with pytest.raises(ConfigError, match=r"dataset\.reference=") as error:
            job(*given, f"task={task}")
        assert said in str(error.value) and "\n" not in str(error.value)
    job(*given, "task=cost")


def test_a_whole_reference_is_taken(tmp_path):
    images = np.zeros((9, 16, 16, 1), np.uint8)
    for number, arrays in enumerate(
        [{"arr_0": images}, GAUSSIAN, {"feats": np.zeros((7, 2048))}, {**GAUSSIAN, "arr_0": images}]
    ):
        path = saved_arrays(tmp_path / f"{number}.npz", **arrays)
        assert job("method=fp", f"dataset.reference={path}", "metrics.names=[fid]").dataset.reference == str(path)
    job("method=fp", f"dataset.reference={saved_pictures(tmp_path / 'pictures')}", "metrics.names=[fid]")
