import json
from dataclasses import fields, replace

import pytest

from dmqbench.eval.measurement import Floor, Measurement
from dmqbench.eval.protocol import Protocol, agree, differing_entries, entries_of, metric_of, unknown_entries

PROTOCOL = Protocol(
    metric="psnr",
    version=1,
    tool="dmqbench",
    rounding="uint8",
    n=256,
    seed=0,
    sampler="ddim",
    timesteps=(951, 901, 1),
    eta=0.0,
    guidance=1.0,
    chunk=32,
    engine="simulate",
    scope="common",
    clip=None,
    extractor="digits",
    extractor_hash="abcdef0123456789",
    resize="none",
    reference="fp",
    reference_hash="0123",
)

OTHER = {
    "metric": "ssim", "version": 2, "tool": "torchmetrics", "rounding": "float32", "n": 512, "seed": 1,
    "sampler": "ddpm", "timesteps": (951, 902, 1), "eta": 0.5, "guidance": 1.5, "chunk": 4,
    "engine": "int_reference",
    "scope": "paper", "base": "fedcba98",
    "clip": 1.0, "extractor": "scenes", "extractor_hash": "abcdef01999", "resize": "clean",
    "reference": "digits", "reference_hash": "0124", "saved": "JPEG",
    "task": "edit", "strength": 0.5,
}  # fmt: skip


def measured(of: Protocol = PROTOCOL, **changes) -> Measurement:
    return Measurement(**{"value": 31.5, "ci95": (31.0, 32.0), "n": of.n, "protocol": of.id} | changes)


@pytest.mark.parametrize("name", [entry.name for entry in fields(Protocol) if entry.name != "unknown"])
def test_every_entry_changes_the_id(name):
    assert getattr(PROTOCOL, name) != OTHER[name]
    assert replace(PROTOCOL, **{name: OTHER[name]}).id != PROTOCOL.id


def test_the_id_reads_as_one_line():
    assert PROTOCOL.id.startswith("psnr/1 tool=dmqbench n=256 rounding=uint8 extractor=digits@abcdef01 ")
    assert "\n" not in PROTOCOL.id
    assert metric_of(PROTOCOL.id) == "psnr"
    assert entries_of(PROTOCOL.id)["sampler"] == "ddim"
    assert "clip" not in entries_of(PROTOCOL.id)


def test_what_is_unknown_is_said():
    foreign = replace(PROTOCOL, sampler=None, timesteps=(), unknown=("sampler", "timesteps"))
    assert "sampler=unknown" in foreign.id
    assert "steps=unknown" in foreign.id
    assert unknown_entries(foreign.id) == ("sampler", "steps")
    assert foreign.id != PROTOCOL.id


@pytest.mark.parametrize("change", [{"sampler": None}, {"timesteps": ()}, {"unknown": ("eta",)}])
def test_an_entry_is_given_or_said_to_be_unknown(change):
    with pytest.raises(ValueError, match=r"must be given, or be listed as unknown"):
        replace(PROTOCOL, **change)


def test_protocols_agree_where_both_know():
    foreign = replace(PROTOCOL, sampler=None, scope=None, unknown=("sampler", "scope"))
    assert agree(foreign.id, PROTOCOL.id)
    assert agree(PROTOCOL.id, replace(PROTOCOL, sampler="ddpm").id, ignoring=("sampler",))
    assert not agree(foreign.id, replace(PROTOCOL, n=512).id)
    assert not agree(PROTOCOL.id, replace(PROTOCOL, sampler="ddpm").id)


def test_nearly_equal_numbers_have_different_ids():
    assert replace(PROTOCOL, eta=0.1 + 0.2).id != replace(PROTOCOL, eta=0.3).id


def test_the_id_is_pinned():
    assert PROTOCOL.id.endswith("#7bef4ac4")  # stored results name it: changing how it is made orphans them


@pytest.mark.parametrize("change", [{"n": 0}, {"sampler": "ddim 20"}, {"reference": ""}, {"extractor": "a=b"}])
def test_an_unreadable_protocol_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(PROTOCOL, **change)


@pytest.mark.parametrize("protocol", ["", "psnr", "psnr/1 n=256"])
def test_a_value_without_protocol_cannot_exist(protocol):
    with pytest.raises(ValueError, match="protocol id"):
        measured(protocol=protocol)
    with pytest.raises(TypeError):
        Measurement(value=1.0, ci95=None, n=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("change", [{"value": float("nan")}, {"value": float("inf")}, {"ci95": (0.0, float("nan"))}])
def test_values_are_finite(change):
    with pytest.raises(ValueError, match="finite"):
        measured(**change)


def test_only_an_exact_result_has_no_value():
    assert measured(value=None, ci95=None, exact=True).to_json()["exact"] is True
    with pytest.raises(ValueError, match="only an exact"):
        measured(value=None)


@pytest.mark.parametrize(
    "measurement",
    [
        measured(),
        measured(ci95=None, higher_is_better=True, extra={"identical": 3}),
        measured(value=None, ci95=None, exact=True, floor=Floor("numerical", None, 256)),
        measured(floor=Floor("other_seed", 0.6, 512, (0.5, 0.7))),
    ],
    ids=["plain", "extra", "exact", "floor"],
)
def test_records_survive_json(measurement):
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


def test_a_plain_record_has_the_four_promised_keys():
    assert measured().to_json() == {"value": 31.5, "ci95": [31.0, 32.0], "n": 256, "protocol": PROTOCOL.id}


def test_differing_entries_are_in_order_and_show_absence():
    other = replace(PROTOCOL, chunk=1, scope="paper")
    differing = differing_entries([PROTOCOL.id, other.id])
    assert list(differing.items()) == [("scope", ("common", "paper")), ("chunk", ("32", "1"))]
    assert not differing_entries([PROTOCOL.id, PROTOCOL.id])
    assert differing_entries([PROTOCOL.id, replace(PROTOCOL, scope=None).id]) == {"scope": ("common", "-")}
