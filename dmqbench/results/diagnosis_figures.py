"""Figures of one job's diagnosis: errors over its steps, and of its layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from dmqbench.results.diagnosis import Diagnosis
from dmqbench.results.figure import Axis, Figure, HeatMap, Line, Panel, calls_axis
from dmqbench.results.studies.colours import LIGHT, MAIN, SECOND, THIRD


def diagnosis_figures(diagnosis: Diagnosis) -> dict[str, Figure]:
    """Return what the page shows of a diagnosis."""
    times = diagnosis["timesteps"]
    texts = [*(f"call {call}, t = {time}" for call, time in enumerate(times)), "the end"]
    figures = {"steps": step_errors(diagnosis["steps"], calls_axis(), texts)}
    return figures | ({"layers": layer_errors(diagnosis["layers"], times)} if diagnosis["layers"] else {})


def step_errors(steps: Mapping[str, Sequence[float]], x: Axis, texts: Sequence[str] = ()) -> Figure:
    """One job's errors: of the states above, and of the network's output at each step below.

    ``texts`` say which step comes next at each state.
    """
    states = (
        ("accumulated", "accumulated", MAIN, 0),
        ("of it a shift of brightness", "shift", LIGHT, 1),
        ("injected by the step alone", "injected", SECOND, 0),
    )
    state = Axis("mean squared difference of the state from full precision", "state, MSE", log=True)
    output = Axis("relative squared error of the output, on states of full precision", "relative", log=True)
    above = tuple(_step_line(name, steps[key], colour, dash, texts) for name, key, colour, dash in states)
    below = _step_line("of the output, relative", steps["local"], THIRD, 0, texts)
    return Figure(
        "Errors over the trajectory",
        (Panel(above, x, state, height=1.4), Panel((below,), x, output, height=0.8)),
        description="Accumulated, injected and local error over the network calls",
    )


def _step_line(name: str, errors: Sequence[float], colour: str, dash: int, texts: Sequence[str]) -> Line:
    own, places = texts[: len(errors)], range(len(errors))
    return Line(name, places, errors, colour, points=len(errors) <= 61, dash=dash, texts=own)


def layer_errors(layers: Mapping[str, Any], times: Sequence[float]) -> Figure:
    """Each quantized layer's relative error over the measured calls."""
    tokens = layers.get("tokens", [None] * len(layers["names"]))
    rows = zip(layers["names"], layers["skip"], tokens, strict=True)
    names = tuple(" · ".join(filter(None, (name, "skip" if skip else "", of))) for name, skip, of in rows)
    calls = Axis(
        "timestep of the call, from noise to image", " ", names=tuple(f"t = {times[at]:g}" for at in layers["calls"])
    )
    heat = HeatMap(layers["error"], "relative squared error of the output", "error")
    return Figure(
        "Output error of every quantized layer",
        (Panel((heat,), calls, Axis("", names=names)),),
        description="Relative output error of every layer over the calls",
    )
