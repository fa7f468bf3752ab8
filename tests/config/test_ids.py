"""What ids of jobs depend on."""

import dataclasses
import json

import pytest
from config.asked import WEIGHTS, ids_of, job
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.config import schema
from dmqbench.config.checked_job import full_precision
from dmqbench.config.ids import JobIds, job_ids
from dmqbench.config.model_facts import timesteps, weights_hash
from dmqbench.store.files import short_hash


def test_full_precision_of_a_quantized_job_is_the_full_precision_job():
    quantized = full_precision(job("method=q_diffusion", "seed=3"))
    alone = job("method=fp")
    assert job_ids(quantized, WEIGHTS).samples == job_ids(alone, WEIGHTS).samples
    assert (quantized.method, quantized.bits) == (alone.method, alone.bits)


def test_ids_are_what_they_were():
    """Whoever changes these raises a version, on purpose: results in users' stores are made again."""
    assert ids_of("method=q_diffusion", "bits=w4a6", "trainer=cpu") == JobIds(
        trajectories="49ad26c3350cbce2",
        stages=(
            ("weight_range", "8cbfd319763357f6"),
            ("weight_reconstruction", "07b375067a3d5a89"),
            ("activation_range", "ce34bab28fb05b88"),
            ("activation_reconstruction", "44e00b9c6e285f8d"),
        ),
        quantized="44e00b9c6e285f8d",
        samples="455dd176bdbdabca",
        result="dd641af657552440",
    )
    assert ids_of("method=fp", "trainer=cpu").result == "81611c6d991f7fcb"


SAME = (
    "tracker=disabled",
    "tracker.mode=offline",
    "store.root=elsewhere",
    "trainer.accelerator=cpu",
    "task=sample",
    "sampler.batch=7",
    "metrics.names=[psnr]",
    "metrics.samples=1024",
    "metrics.pairs=8",
    "method.weight_reconstruction.capture_mib=64",
    "bits.scope=common",
    "bits.ranges=shared",
    "hydra/launcher=basic",
)


@pytest.mark.parametrize("override", SAME)
def test_what_changes_no_number_changes_no_id(override):
    assert ids_of("method=q_diffusion", override) == ids_of("method=q_diffusion")


@pytest.mark.parametrize(
    ("override", "trajectories", "first_stage"),
    [
        ("seed=1", True, True),
        ("sampler.steps=10", True, True),
        ("sampler.eta=0.5", True, True),
        ("sampler.guidance=2", True, True),
        ("sampler.chunk=16", True, True),
        ("sampler.clip_sample=1.0", True, True),
        ("budget.trajectories=8", True, True),
        ("budget.validation=8", True, True),
        ("bits.weight=3", False, True),
        ("bits.scope=paper", False, True),
        ("method.weight_range.exponent=2.0", False, True),
        ("bits.activation=6", False, False),
        ("bits.ranges=step", False, False),
        ("budget.weight_iterations=9", False, False),
        ("method.weight_reconstruction.learning_rate=0.5", False, False),
        ("metrics.seed=1", False, False),
        ("engine=int_reference", False, False),
    ],
)
def test_what_changes_numbers_changes_the_ids_that_follow(override, trajectories, first_stage):
    before, after = ids_of("method=q_diffusion"), ids_of("method=q_diffusion", override)
    assert (before.trajectories != after.trajectories) == trajectories
    assert (before.stages[0] != after.stages[0]) == first_stage
    assert before.samples != after.samples and before.result != after.result


def test_stages_that_use_only_weights_are_shared_over_activation_bits_and_methods():
    low, high = ids_of("method=q_diffusion", "bits=w4a4"), ids_of("method=q_diffusion", "bits=w4a8")
    assert low.stages[:2] == high.stages[:2]
    assert low.stages[2] != high.stages[2] and low.quantized != high.quantized
    assert low.quantized == low.stages[-1][1]
    assert ids_of("method=rtn", "bits=w4a4").stages[0] == low.stages[0]


def test_full_precision_ids_ignore_what_full_precision_ignores():
    plain = ids_of("method=fp")
    for override in (
        "bits=w4a4",
        "seed=3",
        "bits.scope=paper",
        "budget.weight_iterations=1",
        "engine=int_reference",
    ):
        other = ids_of("method=fp", override)
        assert (other.samples, other.result) == (plain.samples, plain.result)
    assert plain.quantized is None and plain.stages == ()
    assert ids_of("method=fp", "metrics.seed=1").samples != plain.samples


def test_ids_depend_on_the_weights():
    made = job("method=rtn")
    first, second = job_ids(made, "0" * 64), job_ids(made, "1" * 64)
    assert all(a != b for a, b in zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True))


def test_the_device_is_part_of_what_is_sampled():
    cpu = job("trainer=cpu")
    gpu = dataclasses.replace(cpu, trainer=schema.TrainerConfig("gpu"))
    assert job_ids(cpu, WEIGHTS).samples != job_ids(gpu, WEIGHTS).samples
    assert job_ids(cpu, WEIGHTS).quantized == job_ids(gpu, WEIGHTS).quantized


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.lists(st.integers())))
def test_a_hash_depends_on_the_value_and_not_on_the_order(value):
    assert short_hash(value) == short_hash(dict(reversed(value.items())))
    assert len(short_hash(value)) == 16 and int(short_hash(value), 16) >= 0


def test_the_hash_of_weights_sees_every_byte_and_the_scheduler(tmp_path):
    import struct

    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    network = tmp_path / "unet"
    network.mkdir()
    (network / "config.json").write_text('{"in_channels": 1, "sample_size": 4}')
    weights = network / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    model = schema.ModelConfig("mine", "local", str(tmp_path))
    seen = {weights_hash(model)}
    (tmp_path / "training.json").write_text("{}")
    assert weights_hash(model) in seen
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    seen.add(weights_hash(model))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "DDPMScheduler", "num_train_timesteps": 10}'
    )
    seen.add(weights_hash(model))
    assert len(seen) == 3
    assert timesteps(dataclasses.replace(job().sampler, steps=2), model) == (5, 0)
