from dmqbench.tracking.record import curve
from dmqbench.tracking.wandb_rows import axes_of, flat, key, points_of

CURVE = {"event": "curve", "step": None, **curve("error", "call", [0, 1, 2], {"a.b": [1.0, None, 3.0], "short": [5.0]})}


def test_a_curve_is_a_row_for_each_point_over_its_own_axis():
    assert points_of(CURVE) == [
        {"error/a_b": 1.0, "error/short": 5.0, "error/call": 0},
        {"error/a_b": 3.0, "error/call": 2},
    ]
    assert axes_of(CURVE) == ("error/*", "error/call")


def test_what_is_no_number_is_no_point():
    lines = {"loss": ["nan", 1.0, "inf"], "none": [None, None, None]}
    assert points_of({"event": "curve", **curve("c", "x", [0, 1, 2], lines)}) == [{"c/loss": 1.0, "c/x": 1}]
    assert points_of({"event": "curve", **curve("c", "x", [0], {"longer": [1.0, 2.0]})}) == [
        {"c/longer": 1.0, "c/x": 0}
    ]


def test_numbers_of_an_event_are_one_row():
    frame = {"time": 1.5, "job": "j", "part": "evaluation"}
    event = {**frame, "event": "unit", "step": 3, "loss": 0.5, "name": "mid", "done": True, "list": [1]}
    assert points_of(event) == [{"unit/loss": 0.5, "unit/done": True, "unit/step": 3}]
    assert axes_of(event) == ("unit/*", "unit/step")
    assert points_of({**frame, "event": "note", "step": 4, "text": "no number"}) == []
    assert axes_of({**event, "step": None}) is None and points_of({**event, "step": None}) == [
        {"unit/loss": 0.5, "unit/done": True}
    ]


def test_names_have_only_letters_that_queries_know():
    assert key("loss/stage", "down_blocks.0.attn-1.ψ") == "loss/stage/down_blocks_0_attn-1__"


def test_nested_values_are_named_by_their_path():
    nested = {"metrics": {"psnr": {"value": 31.5, "ci95": [30, 32], "replicates": [1, 2, 3], "reason": None}}, "n": 4}
    assert flat(nested) == {"metrics/psnr/value": 31.5, "metrics/psnr/ci95": [30, 32], "n": 4}
