"""``bits.plan``: what is read, what is refused in one line, and what enters ids and names."""

import json
from dataclasses import replace

import pytest
from safetensors import safe_open

from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.ids import job_ids
from dmqbench.config.job import make_job
from dmqbench.config.model_facts import weights_hash
from dmqbench.config.precision_plans import check_layers, plan_hash, read_plan
from dmqbench.models.folders import EMBEDDED, WEIGHTS
from dmqbench.models.sources import meta_topology
from dmqbench.models.weight_files import tensor_shapes
from dmqbench.quant.plan import LayerPlan, PrecisionPlan, uniform_plan
from dmqbench.quant.spec import COMMON_SCOPE, BitWidth
from dmqbench.store.files import save_json


def job_of(*overrides):
    return make_job(compose(["method=rtn", "bits=w2a4", *overrides]))


def refusal(*overrides):
    with pytest.raises(ConfigError) as caught:
        check_layers(job_of(*overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def plan():
    """Of the embedded model: a row of 3 and a row of 1 bits in the first layer."""
    topology, _ = meta_topology(job_of().model.checkpoint)
    uniform = uniform_plan(topology.layers, BitWidth(2, 8), COMMON_SCOPE)
    first, *others = uniform.layers
    rows = next(layer.weight_shape[0] for layer in topology.layers if layer.name == first.name)
    mixed = replace(first, weight_bits=(3, 1, *[2] * (rows - 2)))
    return PrecisionPlan((mixed, *others), uniform.full_precision)


@pytest.fixture
def path(plan, tmp_path):
    save_json(tmp_path / "plan.json", plan.to_json())
    return tmp_path / "plan.json"


def changed(path, change):
    data = json.loads(path.read_text())
    change(data["layers"])
    path.write_text(json.dumps(data))
    return f"bits.plan={path}"


# ---- reading


def test_a_plan_is_a_file_a_folder_or_the_last_stage_of_a_result(plan, path, tmp_path):
    store = tmp_path / "runs"
    save_json(store / "quantized" / "0123456789abcdef" / "plan.json", plan.to_json())
    result = store / "result" / "fedcba9876543210"
    save_json(result / "result.json", {"artifacts": {"stages": [["a", "x"], ["b", "0123456789abcdef"]]}})
    for place in (path, path.parent, store / "quantized" / "0123456789abcdef", result):
        assert read_plan(place) == plan
        assert job_of(f"bits.plan={place}").plan.plan == plan


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[", "is not valid JSON"),
        ("[]", "is no precision plan (TypeError"),
        ('{"layers": []}', "is no precision plan (KeyError: 'full_precision')"),
        ('{"layers": [], "full_precision": []}', "has no layers"),
        ('{"layers": [{"name": "a"}], "full_precision": []}', "is no precision plan (KeyError: 'weight_bits')"),
    ],
)
def test_something_else_is_no_plan(tmp_path, content, problem):
    (tmp_path / "plan.json").write_text(content)
    assert problem in refusal(f"bits.plan={tmp_path}")


@pytest.mark.parametrize("value", ["4", 2.0, True, None, [], [2, "2"]])
def test_bits_are_whole_numbers(path, value):
    message = refusal(changed(path, lambda layers: layers[0].update(weight_bits=value)))
    assert "is no precision plan (TypeError: layer down_blocks.0.resnets.0.conv1" in message


@pytest.mark.parametrize(
    ("place", "problem"),
    [("nowhere", "cannot be used: No such file or directory"), ("", "it has neither plan.json nor result.json")],
)
def test_a_place_without_a_plan_is_named(tmp_path, place, problem):
    assert problem in refusal(f"bits.plan={tmp_path / place}")


def test_a_result_of_full_precision_has_no_plan(tmp_path):
    save_json(tmp_path / "result.json", {"artifacts": {"stages": []}})
    assert "its job quantized nothing" in refusal(f"bits.plan={tmp_path}")
    save_json(tmp_path / "result.json", {"artifacts": {"stages": [["a", "0123456789abcdef"]]}})
    assert "the plan of its job is not in the store" in refusal(f"bits.plan={tmp_path}")


@pytest.mark.parametrize("content", ["[]", '{"artifacts": {"stages": {"a": 1}}}', '{"artifacts": {"stages": [["a"]]}}'])
def test_a_result_that_is_damaged_is_told_in_one_line(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    assert "cannot be used: its result.json names no stages" in refusal(f"bits.plan={tmp_path}")


# ---- fitting


def test_a_plan_for_another_model_is_refused_with_the_first_layer(path):
    message = refusal(f"bits.plan={path}", "model=ladder_1")
    assert "has 32 rows for layer down_blocks.0.resnets.0.conv1, the model has 16" in message


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda layers: layers[3].update(name="elsewhere"), "names layer elsewhere, which this model lacks"),
        (lambda layers: layers[0]["weight_bits"].pop(), "has 31 rows for layer down_blocks.0.resnets.0.conv1"),
        (lambda layers: layers.append(layers[4]), "twice"),
        (lambda layers: layers.pop(5), "does not fit bits.scope=common: the precision plan lacks layer"),
        (
            lambda layers: layers.append({**layers[5], "name": "conv_in"}),
            "the precision plan has layer conv_in, which is not quantized here",
        ),
    ],
)
def test_the_first_layer_that_differs_is_named(path, change, problem):
    assert problem in refusal(changed(path, change))


def test_a_plan_of_another_scope_is_refused(path):
    message = refusal(f"bits.plan={path}", "method=q_diffusion", "bits.scope=paper")
    assert "does not fit bits.scope=paper: the precision plan lacks layer" in message


def test_its_mean_must_round_to_the_bits_of_the_job(path):
    message = refusal(f"bits.plan={path}", "bits=w3a4")
    assert message.startswith("bits.weight=3 is not what bits.plan has, 2 bits in the mean; nearest: 2")
    three = changed(path, lambda layers: [layer.update(weight_bits=3) for layer in layers])
    assert job_of(three, "bits=w3a4").plan is not None
    assert "is not what bits.plan has, 3 bits in the mean; nearest: 3" in refusal(three)


def test_bits_are_either_given_or_searched(path):
    message = refusal("method=mpq_dm", f"bits.plan={path}")
    assert "gives the bits that outlier_allocation searches for" in message
    stages = "method.stages=[weight_range,activation_range]"
    assert job_of("method=mpq_dm", stages, f"bits.plan={path}").plan is not None


def test_full_precision_ignores_it(path):
    plain, given = job_of("method=fp"), job_of("method=fp", f"bits.plan={path}", "bits=w8a8")
    assert given.plan is None
    assert given.config["bits"] == plain.config["bits"] and "plan" not in plain.config["bits"]


def test_headers_say_what_modules_are_called_now(tmp_path):
    folder = EMBEDDED / "digits" / "unet"
    shapes = tensor_shapes(folder)
    with safe_open(folder / WEIGHTS, "np") as file:
        assert shapes == {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    old = {"a.0.query.weight": [4, 4], "a.0.proj_attn.bias": [4], "key.weight": [1], "b.value.norm.weight": [2]}
    ends = [0, 64, 80, 84, 92]
    header = {name: {"dtype": "F32", "shape": shape} for name, shape in old.items()}
    for number, entry in enumerate(header.values()):
        entry["data_offsets"] = ends[number : number + 2]
    text = json.dumps(header).encode()
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(92))
    names = ["a.0.to_q.weight", "a.0.to_out.0.bias", "key.weight", "b.value.norm.weight"]
    assert list(tensor_shapes(tmp_path)) == names


# ---- ids and names


def ids(*overrides):
    job = job_of(*overrides)
    return job_ids(job, weights_hash(job.model))


def test_its_content_enters_the_ids_of_stages_and_its_path_does_not(path, tmp_path):
    plain, given = ids(), ids(f"bits.plan={path}")
    assert given.trajectories == plain.trajectories
    assert {id for _, id in given.stages}.isdisjoint(id for _, id in plain.stages)
    elsewhere = tmp_path / "elsewhere.json"
    data = json.loads(path.read_text())
    for layer in data["layers"]:  # what a plan says besides weight bits is the job's own
        layer.update(activation_bits=8, boundaries=[])
    elsewhere.write_text(json.dumps(data))
    assert ids(f"bits.plan={elsewhere}") == given
    swapped = changed(path, lambda layers: layers[0]["weight_bits"].reverse())
    assert ids(swapped).result != given.result


def test_equal_rows_and_the_order_of_layers_make_no_difference_to_the_hash():
    one = PrecisionPlan((LayerPlan("a", (2, 2), 4), LayerPlan("b", (1, 3), 4)))
    other = PrecisionPlan((LayerPlan("b", (1, 3), 8), LayerPlan("a", 2, 8)), ("c",))
    assert plan_hash(one) == plan_hash(other)
    assert plan_hash(one) != plan_hash(PrecisionPlan((LayerPlan("a", 2, 4), LayerPlan("b", (3, 1), 4))))


def test_a_title_names_the_plan(path, plan):
    name = f"plan {plan_hash(plan)[:8]}"
    assert job_of(f"bits.plan={path}").title == f"rtn digits w2a4 ({name})"
    asked = ["method=dmq", "method.equivalent_scaling.weighting=uniform", f"bits.plan={path}"]
    assert job_of(*asked).title == f"dmq digits w2a4 (weighting=uniform, {name})"


@pytest.mark.parametrize(
    ("overrides", "variant"),
    [
        (["method.plus=true"], "plus=true"),
        (["method.outlier_allocation.plus=true"], "plus=true"),
        (["method.plus=true", "method.outlier_allocation.rows=random"], "rows=random, plus=true"),
        ([], ""),
    ],
)
def test_plus_is_a_variant_that_is_named_once(overrides, variant):
    job = job_of("method=mpq_dm", *overrides)
    assert job.method.variant == variant
    assert job.method.stages[0].settings["plus"] is ("plus" in variant)


def test_plus_without_its_stage_changes_nothing():
    message = refusal("method=mpq_dm", "method.plus=true", "method.stages=[weight_range,activation_range]")
    assert message.startswith("method.plus=true changes nothing without the stage outlier_allocation; nearest: false")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.outlier_allocation.rows=kurtosys", "is not known; nearest: kurtosis"),
        ("method.outlier_allocation.inputs=float", "allowed: quantized, fp"),
        ("method.outlier_allocation.largest_tenths=6", "is out of range; nearest: 5"),
        ("method.outlier_allocation.samples=0", "is out of range; nearest: 1"),
        ("method.stages=[weight_range,outlier_allocation,activation_range]", "needs weight_range after outlier_alloc"),
        ("method.stages=[activation_range,outlier_allocation,weight_range]", "needs activation_range after outlier_al"),
    ],
)
def test_wrong_settings_of_the_search_are_one_line(override, message):
    assert message in refusal("method=mpq_dm", override)
