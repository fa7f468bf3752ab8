"""Sizes of images other than the one that a network's file states: what is asked for, and what it is of a job."""

import pytest
from config.asked import ids_of, job, refused
from tiny import save_pipeline, unet

from dmqbench.tasks.memory_plan import planned_phases

COUNTED = ("task=cost", "method=rtn", "bits=w4a8")
SIZED = {
    "model=sd14 model.size=768": (4, 96, 96),
    "model=sd14 model.size=[512,768]": (4, 64, 96),
    "model=sdxl model.size=[832,1216]": (4, 104, 152),
    "model=ldm8_church model.size=[256,512]": (4, 32, 64),
    "model=ddpm_cifar10 model.size=[32,64]": (3, 32, 64),
    "model=pixart_sigma model.size=[1024,512]": (4, 128, 64),
    "model=sd3_medium model.size=1536": (16, 192, 192),
    "model=flux_dev model.size=[768,1360]": (16, 96, 170),
}


@pytest.mark.parametrize("overrides", SIZED)
def test_a_size_in_pixels_is_that_of_the_state(overrides):
    made = job(*COUNTED, *overrides.split())
    assert made.model.sample_shape == SIZED[overrides]
    assert made.config["model"]["size"] == list(made.model.size) and len(made.model.size) == 2
    assert "×".join(map(str, made.model.size)) in made.model.label


@pytest.mark.parametrize("size", ["null", "512", "[512,512]"])
def test_the_size_of_the_file_is_no_other_size(size):
    made, usual = (job(*COUNTED, "model=sd14", *more) for more in ((f"model.size={size}",), ()))
    assert made == usual and "size" not in made.config["model"] and made.model.label == "sd14"


def test_another_size_is_another_job(tmp_path):
    folder = save_pipeline(tmp_path / "mine", unet(class_entries=None))
    asked = ("model=local", f"model.path={folder}", "method=rtn", "bits=w4a8")
    usual, own, other = (ids_of(*asked, f"model.size={size}") for size in ("null", "8", "[8,16]"))
    assert usual == own
    for kind in ("trajectories", "quantized", "samples", "result"):
        assert getattr(other, kind) != getattr(usual, kind)
    small, large = (planned_phases(job(*asked, f"model.size={size}")) for size in (8, 32))
    grown = {after.name: after.computing / before.computing for before, after in zip(small, large, strict=True)}
    assert grown["trajectories"] > 4 and grown["samples"] > 2 and grown["loading"] == 1


REFUSED = {
    "model=sd14 model.size=[500,700]": "=[500,700] must be multiples of 64 for sd14; nearest: [512,704]",
    "model=sd14 model.size=1": "=1 must be multiples of 64 for sd14; nearest: [64,64]",
    "model=sdxl model.size=[832,1220]": "must be multiples of 32 for sdxl; nearest: [832,1216]",
    "model=pixart_sigma model.size=[1000,516]": "must be multiples of 16 for pixart_sigma; nearest: [1008,512]",
    "model=flux_dev model.size=1025": "must be multiples of 16 for flux_dev; nearest: [1024,1024]",
    "model=sd3_medium model.size=[4096,1024]": "of 16 up to 3072 for sd3_medium; nearest: [3072,1024]",
    "model=dit_xl_256 model.size=512": "DiTTransformer2DModel is for images of the size of its training alone; "
    "nearest: [256,256] (allowed: null)",
    "model=digits model.size=32": "digits is shipped for images of its own size; nearest: [16,16] (allowed: null)",
    "model=sd14 model.size=0": "=0 is no size in pixels (allowed: null, PIXELS, [HEIGHT,WIDTH])",
    "model=sd14 model.size=512.0": "=512.0 is no size in pixels",
    "model=sd14 model.size=true": "=true is no size in pixels",
    "model=sd14 model.size=[512]": "=[512] is no size in pixels",
    "model=sd14 model.size=[512,-64]": "=[512,-64] is no size in pixels",
    "model=sd14 model.size=512x512": "=512x512 is no size in pixels",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_size_that_cannot_be_is_refused_in_one_line(overrides):
    error = refused(*COUNTED, *overrides.split())
    assert error.key == "model.size" and REFUSED[overrides] in str(error)
