"""The most memory that every stage would hold at once, from shapes alone.

Each function brings the network of a ``ShapeBench`` into the state that its stage leaves, and returns the bytes of the
network and of all beside it that are held at the stage's peak; the trajectory bank is not among them. Where memory goes
is what the stage's own functions do on the meta device; what is held between them is counted here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dmqbench.calibration.shape_bench import ShapeBench
from dmqbench.models.portions import WHOLE
from dmqbench.quant.functional import is_narrow, widened
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quant_layers, weight_layers
from dmqbench.quant.power_of_two import CHUNK_ELEMENTS
from dmqbench.quant.state import activation_quantizers
from dmqbench.stages.bias_correction import BiasCorrection
from dmqbench.stages.footprints_of_scales import equivalent_scaling
from dmqbench.stages.footprints_of_training import low_rank_tuning, trajectory_reconstruction
from dmqbench.stages.footprints_of_units import activation_reconstruction, weight_reconstruction
from dmqbench.stages.outlier_allocation import OutlierAllocation

Footprint = Callable[[ShapeBench, Any], int]
"""(bench, settings) → bytes."""


def weight_range(bench: ShapeBench, settings: Any) -> int:
    """Layers are looked at one after another: a scaled copy of a weight, or one that was brought with what it is read
    from, is all there is beside it."""
    copies = [
        widened(layer.weight).nbytes * (1 + (layer.weight_elsewhere is not None))
        for layer in weight_layers(bench.network).values()
        if layer.equivalent_scale is not None or is_narrow(layer.weight) or layer.weight_elsewhere is not None
    ]
    return bench.network_bytes + max([bench.saved_bytes, *copies])


def activation_range(bench: ShapeBench, settings: Any) -> int:
    """Every quantizer copies what it is shown, keeps some of it, and searches among that in the end."""
    points, branches = bench.points_of(settings), bench.branches
    quantizers = activation_quantizers(bench.network)
    per_sample = max(1, settings.values_per_row * bench.rows // points)
    kept: dict[str, int] = {}

    def observer(name: str) -> Callable[[Tensor], None]:
        def observe(x: Tensor) -> None:
            copied = x.flatten(1).clone()
            stride = max(1, copied.shape[1] // per_sample)
            kept[name] = -(-copied.shape[1] // stride) * points * branches * x.element_size()

        return observe

    for name, quantizer in quantizers.items():
        quantizer.observer = observer(name)
    call = bench.call(bench.batch_of(settings), True, True)
    for quantizer in quantizers.values():
        quantizer.observer = None
    searching = 3 * max(kept.values(), default=0) // bench.rows
    return bench.network_bytes + max(sum(kept.values()) + max(call, searching), bench.saved_bytes)


def activation_ema(bench: ShapeBench, settings: Any) -> int:
    """Rows are passed one by one; a batch has points of one row only."""
    largest = max(settings.ema_batch, settings.later_batch if settings.later_passes else 0)
    call = bench.call(min(largest, -(-bench.points_of(settings) // bench.rows)), True, True, WHOLE)
    return bench.network_bytes + max(call, bench.saved_bytes)


def power_of_two_scaling(bench: ShapeBench, settings: Any) -> int:
    """The inputs of one layer at a time, and the errors of its candidates."""
    layers = quant_layers(bench.network)
    names = [
        info.name
        for info in bench.topology.layers
        if info.name in layers
        and layers[info.name].activation_quantizer is not None
        and info.kind != "linear"
        and (settings.layers == "all" or info.shortcut or info.boundaries)
    ]
    samples, peak, candidates = bench.batch_of(settings) * bench.branches, bench.saved_bytes, settings.depth + 1
    reached = bench.watched_call(bench.batch_of(settings), names, True, True)
    for name in names:
        (x, *_), _ = bench.seen[name].inputs(samples)
        size = x.nbytes
        errors = samples * x.shape[1] * candidates * x.element_size() + 3 * max(size // samples, CHUNK_ELEMENTS * 4)
        made = bench.seen[name].output_bytes * samples
        peak = max(peak, size + reached[name], 2 * size + errors, 3 * size + 3 * made)
    return bench.network_bytes + peak


def outlier_allocation(bench: ShapeBench, settings: Any) -> int:
    """All points in one call; each layer is computed at up to three widths."""

    def decide(_: str, layer: QuantLayer, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if layer.weight_quantizer is None:
            return output
        given = [widened(args[0]).clone() for _ in range(3)]
        weights = [widened(layer.weight).clone() for _ in range(4)]
        portion = output[: bench.portion_of(len(output))]
        outputs = [widened(output).clone(), *(widened(portion).clone() for _ in range(3))]
        return (given, weights, outputs)[2][0].to(output.dtype)

    call = bench.hooked_call(bench.points_of(settings), decide)
    OutlierAllocation.outline_(bench.network, settings)
    return bench.network_bytes + max(call, bench.saved_bytes)


def bias_correction(bench: ShapeBench, settings: Any) -> int:
    """Each layer computes its output again, and the difference in twice the precision, channel by channel."""

    def look(_: str, layer: QuantLayer, args: tuple[Tensor, ...], output: Tensor) -> Any:
        exact = widened(layer.apply_weight(args[0], layer.weight, layer.bias))
        error = (widened(output) - exact).double()
        return (exact, error, error.square())[0].to(output.dtype)

    call = bench.hooked_call(bench.batch_of(settings), look, True, True)
    BiasCorrection.outline_(bench.network, settings)
    return bench.network_bytes + max(call, bench.saved_bytes)


FOOTPRINTS: Mapping[str, Footprint] = {
    function.__name__: function
    for function in (
        *(weight_range, weight_reconstruction, activation_range, activation_reconstruction, activation_ema),
        *(equivalent_scaling, power_of_two_scaling, outlier_allocation, low_rank_tuning, trajectory_reconstruction),
        bias_correction,
    )
}
"""By the name of the stage; those of other packages are not known."""
