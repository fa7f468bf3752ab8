"""Images made elsewhere: what is refused before anything starts, and how they are named."""

import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import autoencoder, save_pipeline, unet

from dmqbench.config.checked_job import full_precision
from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.ids import foreign_ids, images_id, job_ids
from dmqbench.config.input_checks import check_foreign, read_prompts
from dmqbench.config.inputs import EvaluateConfig
from dmqbench.config.job import images_job, make_job
from dmqbench.config.model_facts import image_shape, weights_hash
from dmqbench.config.schema import ModelConfig
from dmqbench.data.archive_info import ArchiveError
from dmqbench.data.prompts import LARGEST
from dmqbench.tasks.result import declared_quantization, label_of

DIGITS = ModelConfig("digits", "embedded", sample_shape=(1, 16, 16), classes=10, datasets=("digits",))


def archive(path: Path, count=6, shape=(16, 16, 1), seed=0) -> str:
    np.savez(path, np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8))
    return str(path)


def refusal(evaluate: EvaluateConfig, model=DIGITS, samples=4) -> str:
    with pytest.raises(ConfigError) as caught:
        check_foreign(evaluate, model, samples)
    error = caught.value
    assert str(error) == " ".join(f"{error.key}={error.value} {error.problem}".split())
    assert "\n" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    return str(error)


# ---- refusals


def test_what_belongs_together_is_accepted(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a nought\na one\n\nan empty prompt before\n")
    check_foreign(EvaluateConfig(), DIGITS, 512)
    check_foreign(EvaluateConfig(samples=archive(tmp_path / "x.npz")), DIGITS, 512)
    everything = EvaluateConfig(
        samples=archive(tmp_path / "x.npz", shape=(32, 32, 3)),
        fp_samples=archive(tmp_path / "fp.npz", count=3, shape=(32, 32, 3)),
        name="my method, seed 3 (ε)",
        bits="w4a8",
        prompts=str(prompts),
    )
    check_foreign(everything, DIGITS, 4)


@pytest.mark.parametrize("key", ["fp_samples", "name", "bits", "prompts"])
def test_keys_that_say_something_of_samples_that_are_not_given(key):
    assert refusal(EvaluateConfig(**{key: "x"})) == f"evaluate.{key}=x needs evaluate.samples"


def test_files_that_cannot_be_used(tmp_path):
    absent = str(tmp_path / "absent.npz")
    assert refusal(EvaluateConfig(absent)) == (
        f"evaluate.samples={absent} cannot be used: there is no such file or folder"
    )
    good = archive(tmp_path / "x.npz")
    assert refusal(EvaluateConfig(good, absent)).startswith(f"evaluate.fp_samples={absent} cannot be used")
    (tmp_path / "folder").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "folder" / "0.png")
    Image.new("L", (8, 8)).save(tmp_path / "folder" / "1.png")
    assert "cannot be used: 1.png: is 1×8×8" in refusal(EvaluateConfig(str(tmp_path / "folder")))


def test_sizes_that_do_not_belong_together(tmp_path):
    ours = archive(tmp_path / "x.npz", shape=(32, 32, 3))
    line = refusal(EvaluateConfig(ours))
    assert "holds images of 3×32×32, and model=digits makes 1×16×16 (C×H×W)" in line
    assert "give evaluate.fp_samples" in line
    theirs = archive(tmp_path / "fp.npz", shape=(16, 16, 3))
    assert "holds images of 3×16×16, and evaluate.samples of 3×32×32" in refusal(EvaluateConfig(ours, theirs))


@pytest.mark.parametrize("bits", ["4", "w4", "W4A8", "w4a8 ", "int4", "w4a8=x"])
def test_bits_are_said_as_everywhere(tmp_path, bits):
    line = refusal(EvaluateConfig(archive(tmp_path / "x.npz"), bits=bits))
    assert "is not of the form w4a8" in line


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "x" * 81, "\x1b[2J"])
def test_names_that_would_break_a_table(tmp_path, name):
    evaluate = EvaluateConfig(archive(tmp_path / "x.npz"), name=name)
    with pytest.raises(ConfigError, match="printable characters"):
        check_foreign(evaluate, DIGITS, 4)


def test_prompts_that_are_too_few_or_no_text(tmp_path):
    samples, path = archive(tmp_path / "x.npz"), tmp_path / "prompts.txt"
    assert "cannot be read" in refusal(EvaluateConfig(samples, prompts=str(path)))
    path.write_text("one\ntwo\nthree")
    evaluate = EvaluateConfig(samples, prompts=str(path))
    assert "has 3 lines, and the 6 images need a prompt each" in refusal(evaluate, samples=4)
    check_foreign(evaluate, DIGITS, 3)
    path.write_text("too\nmany\nlines\nfor\nthe\nsix\nimages")
    assert "has 7 lines" in refusal(evaluate, samples=4)
    path.write_bytes(b"\xff\xfe")
    assert "is not text in UTF-8" in refusal(evaluate)
    with open(path, "wb") as file:
        file.truncate(LARGEST + 1)
    assert "is larger than 512 MiB" in refusal(evaluate)


def test_prompts_are_lines_and_empty_ones_count(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("ein Hund\r\n\r\neine Kätzin\n".encode())
    assert read_prompts(str(path)) == ("ein Hund", "", "eine Kätzin")
    path.write_text("one\u2028line\x0c\nanother\x85", encoding="utf-8")
    assert read_prompts(str(path)) == ("one\u2028line\x0c", "another\x85")


def test_the_size_of_a_models_images_is_that_of_its_state_or_its_decoder(tmp_path):
    assert image_shape(DIGITS) == (1, 16, 16)
    assert image_shape(replace(DIGITS, sample_shape=())) == (1, 16, 16)
    save_pipeline(tmp_path, unet(in_channels=4, out_channels=4), autoencoder())
    latent = ModelConfig("own", "local", path=str(tmp_path), sample_shape=(4, 8, 8))
    assert image_shape(latent) == (3, 16, 16)  # what tiny.autoencoder says of itself


# ---- names


def test_images_are_named_by_their_pixels(tmp_path):
    one = archive(tmp_path / "x.npz", seed=1)
    images = np.load(one)["arr_0"]
    np.savez_compressed(tmp_path / "y.npz", images.transpose(0, 3, 1, 2))
    (tmp_path / "folder").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "folder" / f"{number}.png")
    assert images_id(one) == images_id(tmp_path / "y.npz") == images_id(tmp_path / "folder")
    assert images_id(archive(tmp_path / "z.npz", seed=2)) != images_id(one)
    before = images_id(one)
    archive(Path(one), seed=3)
    assert images_id(one) != before  # a file that was replaced meanwhile
    Image.fromarray(images[0, ..., 0] ^ 1).save(tmp_path / "folder" / "0.png")
    assert images_id(tmp_path / "folder") != before
    with pytest.raises(ArchiveError, match="cannot be read"):
        images_id(tmp_path / "absent.npz")


@pytest.fixture
def job(tmp_path):
    """A job on the images of an archive."""
    plain = make_job(compose(["task=evaluate"]))
    return replace(plain, evaluate=EvaluateConfig(archive(tmp_path / "x.npz")))


def test_a_result_is_named_by_what_is_compared_and_by_what_its_author_says(job, tmp_path):
    weights = weights_hash(job.model)
    ids = foreign_ids(job, weights)
    assert ids.samples == images_id(job.evaluate.samples)
    assert (ids.stages, ids.quantized) == ((), None)
    assert ids.result != ids.samples
    fp = archive(tmp_path / "fp.npz", seed=5)
    others = [
        replace(job, evaluate=replace(job.evaluate, name="mine")),
        replace(job, evaluate=replace(job.evaluate, bits="w4a8")),
        replace(job, evaluate=replace(job.evaluate, fp_samples=fp)),
        replace(job, evaluate=replace(job.evaluate, samples=fp)),
        replace(job, sampler=replace(job.sampler, steps=10)),  # our full-precision samples are the reference
        replace(job, dataset=replace(job.dataset, name="none")),
    ]
    assert len({ids.result, *(foreign_ids(other, weights).result for other in others)}) == 1 + len(others)
    same = [
        replace(job, seed=7),
        replace(job, metrics=replace(job.metrics, samples=64, pairs=8, names=("psnr",))),
        replace(job, bits=replace(job.bits, weight=8)),
    ]
    assert {foreign_ids(other, weights).result for other in same} == {ids.result}


def test_the_models_own_sampler_says_nothing_of_two_foreign_sets(job, tmp_path):
    weights = weights_hash(job.model)
    both = replace(job, evaluate=replace(job.evaluate, fp_samples=archive(tmp_path / "fp.npz", seed=5)))
    other = replace(both, sampler=replace(job.sampler, steps=10))
    assert foreign_ids(both, weights).result == foreign_ids(other, weights).result


def test_a_job_on_images_keeps_nothing_of_a_method(job):
    images = images_job(job)
    assert (images.config["method"]["name"], images.config["bits"]["weight"]) == ("fp", 32)
    assert images.config["evaluate"] == asdict(job.evaluate)
    assert images.evaluate == job.evaluate
    assert images.method.stages == ()
    assert images == images_job(replace(images_job(replace(job, seed=3)), config=job.config))


def test_foreign_ids_know_our_own_samples(job):
    """Their id is that of the full-precision job, which the same store may hold already."""
    weights = weights_hash(job.model)
    own = job_ids(replace(full_precision(job), evaluate=EvaluateConfig()), weights)
    assert foreign_ids(job, weights).trajectories == own.trajectories


@pytest.mark.parametrize(
    ("path", "name", "label"),
    [("runs/x.npz", None, "x"), ("x.v2.npz", None, "x.v2"), ("x.npz", "mine", "mine")],
)
def test_a_row_is_called_as_its_author_says_or_as_its_file(path, name, label):
    assert label_of(EvaluateConfig(path, name=name)) == label


def test_a_folder_gives_its_whole_name(tmp_path):
    folder = tmp_path / "run.7"
    folder.mkdir()
    assert label_of(EvaluateConfig(str(folder))) == "run.7"
    assert label_of(EvaluateConfig(f"{folder}/")) == "run.7"


def test_what_only_the_author_knows_is_unknown_or_declared():
    said = declared_quantization("mine", "w4a8").to_json()
    assert (said["name"], said["bits"], said["declared"]) == ("mine", "w4a8", ["bits"])
    silent = declared_quantization("mine", None).to_json()
    assert silent == {"name": "mine", "bits": "unknown", "scope": "unknown", "ranges": None, "declared": []}


def test_refusing_needs_no_torch():
    code = "import sys, dmqbench.config.input_checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def folder(path: Path, names: list[str]) -> Path:
    path.mkdir()
    for number, name in enumerate(names):
        Image.new("L", (16, 16), 40 * number).save(path / name)
    return path


def taken_away(file: Path) -> None:
    file.unlink()


def dead_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/nowhere/x.png")


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def another_format(file: Path) -> None:
    with Image.open(file) as image:
        image.save(file.with_suffix(".bmp"))
    file.unlink()


def another_name(file: Path) -> None:
    file.rename(file.with_stem("x" + file.stem))


def a_folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


KINDS = (taken_away, dead_link, cut_off, emptied, another_format, another_name, a_folder_instead)


@pytest.mark.parametrize("which", ["samples", "fp_samples"])
@pytest.mark.parametrize("number", [0, 2, 4], ids=["first", "middle", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_that_is_not_whole_is_named(tmp_path, kind, number, which):
    paths = {name: folder(tmp_path / name, [f"a{n}.png" for n in range(5)]) for name in ("samples", "fp_samples")}
    given = EvaluateConfig(**{name: str(path) for name, path in paths.items()})
    check_foreign(given, DIGITS, 3)
    kind(paths[which] / f"a{number}.png")
    assert f"a{number}" in refusal(given, samples=3)


@pytest.mark.parametrize("fewer", ["samples", "fp_samples"])
def test_a_folder_and_an_archive_of_another_size_are_not_pairs(tmp_path, fewer):
    of_files = str(folder(tmp_path / "files", [f"{n}.png" for n in range(5)]))
    other = archive(tmp_path / "x.npz", count=6 if fewer == "samples" else 4)
    assert "which of them are pairs?" in refusal(EvaluateConfig(of_files, other))
    check_foreign(EvaluateConfig(of_files, archive(tmp_path / "x.npz", count=5)), DIGITS, 3)


def test_folders_pair_by_the_names_of_their_files_without_suffix(tmp_path):
    ours, theirs = folder(tmp_path / "ours", ["a0.png", "a1.png"]), folder(tmp_path / "theirs", ["a0.jpeg", "a1.jpg"])
    check_foreign(EvaluateConfig(str(ours), str(theirs)), DIGITS, 3)
    (theirs / ".#a0.png").symlink_to("me@host.1:2")  # of an open editor
    check_foreign(EvaluateConfig(str(ours), str(theirs)), DIGITS, 3)
    folder(tmp_path / "other", ["a0.png", "a2.png", "a3.png"])
    said = refusal(EvaluateConfig(str(ours), str(tmp_path / "other")))
    assert "a2 stands where a1 does there" in said


@pytest.mark.parametrize("name", ["rtn", "dmq", "fp"])
def test_a_row_made_elsewhere_is_not_called_like_a_method_of_ours(tmp_path, name):
    assert "is a method of this program" in refusal(EvaluateConfig(archive(tmp_path / "x.npz"), name=name))
