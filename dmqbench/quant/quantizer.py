"""Quantizers: modules that hold the parameters and the state of calibration. The mathematics is in ``functional``."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import (
    CLIPPINGS,
    dynamic_parameters,
    fake_quantize,
    interpolate_parameters,
    is_narrow,
    quantize,
    rectified_sigmoid,
    rectified_sigmoid_inverse,
    soft_round_weight,
)
from dmqbench.quant.spec import InputGroups, StepGroups

EVERY_ROW = slice(None)


def frozen_parameter(value: Tensor) -> nn.Parameter:
    """A parameter that is trained only when a stage asks for it."""
    return nn.Parameter(value.detach().clone(), requires_grad=False)


def along_axis(table: Tensor, ndim: int, axis: int) -> Tensor:
    """[B or 1, C or 1] → a view that broadcasts to ``ndim`` dimensions: batch first, channels at ``axis``."""
    shape = [1] * ndim
    shape[0], shape[axis] = table.shape
    return table.reshape(shape)


def uncast(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return what ``Module._apply`` is given without a cast to fewer bits than float32, in which scales must stay."""

    def moved(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        return tensor.to(result.device) if is_narrow(result) else result

    return moved


def group_of_channel(groups: InputGroups) -> Tensor:
    """For every channel, the group that it belongs to, int64 [C]."""
    sizes = torch.tensor([part.stop - part.start for part in groups.slices])
    return torch.arange(groups.count).repeat_interleave(sizes)


class WeightQuantizer(nn.Module):
    """Quantizes a weight [R, C, …] with one scale and zero-point per (row, group of input channels).

    Rows may have different numbers of levels (mixed precision inside a layer). Rounding is to nearest, learned (while
    ``alpha`` is set) or fixed (once ``codes`` are set).
    """

    levels: Tensor
    group_of_channel: Tensor
    codes: Tensor | None
    """Stored codes, uint8 [R, C, …] in 0..L−1; integers of the weight are codes − zero_point."""
    clipping = CLIPPINGS[0]
    """Of the gradient: see ``functional.CLIPPINGS``."""

    def __init__(self, levels: Tensor, groups: InputGroups, ndim: int) -> None:
        super().__init__()
        rows = len(levels)
        self.groups = groups
        self.ndim = ndim
        self.scale = frozen_parameter(torch.ones(rows, groups.count))
        self.zero_point = frozen_parameter(torch.zeros(rows, groups.count))
        self.alpha: nn.Parameter | None = None
        self.register_buffer("levels", levels.to(torch.int32))
        self.register_buffer("codes", None)
        self.register_buffer("group_of_channel", group_of_channel(groups), persistent=False)

    def spread(self, parameter: Tensor) -> Tensor:
        """[R, G] → broadcastable to the weight."""
        per_channel = parameter if self.groups.count == 1 else parameter[:, self.group_of_channel]
        return per_channel.reshape(*per_channel.shape, *[1] * (self.ndim - 2))

    def grid(self) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, zero_point, levels), each broadcastable to the weight."""
        levels = self.levels.to(self.scale.dtype).reshape(-1, *[1] * (self.ndim - 1))
        return self.spread(self.scale), self.spread(self.zero_point), levels

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized and reconstructed weight, differentiable in weight, scale and alpha."""
        if self.codes is not None:
            return self.reconstruct()
        if self.alpha is not None:
            return soft_round_weight(weight, self.alpha, *self.grid())
        return fake_quantize(weight, *self.grid(), self.clipping)

    def rows(self, weight: Tensor) -> tuple[Tensor, ...]:
        """One [R, K] matrix per input group, for the observers."""
        return tuple(weight[:, part].flatten(1) for part in self.groups.slices)

    @torch.no_grad()
    def set_parameters_(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set scale and zero-point, both [R, G]; learned or fixed rounding is dropped with the grid it was for."""
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.alpha, self.codes = None, None

    @torch.no_grad()
    def learn_rounding_(self, weight: Tensor) -> nn.Parameter:
        """Start AdaRound: return α, initialised so that soft rounding reproduces the weight inside the range."""
        scaled = weight / self.spread(self.scale)
        self.alpha = nn.Parameter(rectified_sigmoid_inverse(scaled - scaled.floor()))
        return self.alpha

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Tensor:
        """Return the integers q = code − zero_point of the weight, as floats, rounded hard."""
        if self.codes is not None:
            return self.codes.to(self.scale.dtype) - self.spread(self.zero_point)
        scale, zero_point, levels = self.grid()
        if self.alpha is None:
            return quantize(weight, scale, zero_point, levels)
        rounded = (weight / scale).floor() + (rectified_sigmoid(self.alpha) >= 0.5)
        return rounded.clamp(-zero_point, levels - 1 - zero_point)

    @torch.no_grad()
    def fix_(self, weight: Tensor) -> None:
        """Round hard and keep the codes: from now on the weight is no longer looked at."""
        self.codes = (self.integers(weight) + self.spread(self.zero_point)).to(torch.uint8)
        self.alpha = None

    def reconstruct(self) -> Tensor:
        """Return the weight that the fixed codes stand for."""
        if self.codes is None:
            raise RuntimeError("the rounding is not fixed yet")
        return (self.codes.to(self.scale.dtype) - self.spread(self.zero_point)) * self.spread(self.scale)


class ActivationQuantizer(nn.Module):
    """Quantizes an activation with parameters per (row of steps, group of channels).

    The scale may be multiplied by a power of two per channel (PTS), and rows are chosen per sample by the step that
    the context holds. ``dynamic`` ranges are taken from each ``sample`` or each ``token`` (all channels at one place)
    by itself, never over the batch: results must not depend on who shares a batch. None: they are calibrated.
    """

    row_of_call: Tensor
    group_of_channel: Tensor
    exponent: Tensor | None
    """Powers of two on the scale, int8 [rows or 1, C]; None means none."""
    clipping = CLIPPINGS[0]
    """Of the gradient: see ``functional.CLIPPINGS``."""

    def __init__(
        self,
        context: StepContext,
        levels: int,
        groups: InputGroups,
        channel_axis: int = 1,
        steps: StepGroups | None = None,
        dynamic: Literal["sample", "token"] | None = None,
    ) -> None:
        super().__init__()
        steps = steps or StepGroups.shared()
        self.context = context
        self.levels = levels
        self.groups = groups
        self.channel_axis = channel_axis
        self.dynamic = dynamic
        self.observer: Callable[[Tensor], None] | None = None
        """While set, activations are shown to it and pass unchanged: how ranges are calibrated."""
        self.scale = frozen_parameter(torch.full((steps.rows, groups.count), torch.nan))
        self.zero_point = frozen_parameter(torch.zeros(steps.rows, groups.count))
        self.register_buffer("exponent", None)
        self.register_buffer("row_of_call", torch.tensor(steps.row_of_call, dtype=torch.long))
        self.register_buffer("group_of_channel", group_of_channel(groups), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ActivationQuantizer":
        return super()._apply(uncast(fn), recurse)

    @property
    def per_step(self) -> bool:
        """Whether calls differ: steps may be in groups, and all of them in one."""
        return len(self.scale) > 1

    @property
    def initialised(self) -> bool:
        return self.dynamic is not None or bool(self.scale.isfinite().all())

    def rows(self) -> Tensor:
        """The parameter row of every sample in flight, int64 [B], or [1] when all steps share one row."""
        return self.row_of_call[self.context.step] if self.per_step else self.row_of_call.new_zeros(1)

    @property
    def interpolates(self) -> bool:
        """Whether the samples in flight are on their way between calls whose rows may differ."""
        return self.per_step and self.context.toward is not None

    def in_flight(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """(scale, zero_point) of every sample in flight, [B, G], or [1, G] when all steps share one row.

        Args:
            rows: of their steps. Between two calls parameters are interpolated; powers of two stay those of the step.
        """
        near = self.scale[rows], self.zero_point[rows]
        toward = self.context.toward
        if toward is None or not self.per_step:
            return near
        far = self.row_of_call[toward.call]
        return interpolate_parameters(*near, self.scale[far], self.zero_point[far], toward.share[:, None])

    def tables(self, rows: Tensor | slice = EVERY_ROW) -> tuple[Tensor, Tensor]:
        """(scale, zero_point) of ``rows``, [rows, C], or [rows, 1] when channels share them.

        The scale has its power of two.
        """
        return self.by_channel(self.scale[rows], self.zero_point[rows], rows)

    def by_channel(self, scale: Tensor, zero_point: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Parameters [n, G] with the powers of two of ``rows``: [n, C], or [n, 1] when channels share them."""
        scale, zero_point = self._by_channel(scale), self._by_channel(zero_point)
        if self.exponent is not None:
            exponent = self.exponent if len(self.exponent) == 1 else self.exponent[rows]
            scale = scale * torch.exp2(exponent.to(scale.dtype))
        return scale, zero_point

    def _by_channel(self, parameter: Tensor) -> Tensor:
        """[rows, G] → [rows, C], or [rows, 1] with a single group."""
        return parameter if self.groups.count == 1 else parameter[:, self.group_of_channel]

    def parameters_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (scale, zero_point) broadcastable to ``x`` [B, …], power of two included."""
        if self.dynamic is not None:
            return self._dynamic_parameters(x)
        rows = self.rows() if self.per_step else EVERY_ROW
        scale, zero_point = self.by_channel(*self.in_flight(rows), rows)
        return along_axis(scale, x.ndim, self.channel_axis), along_axis(zero_point, x.ndim, self.channel_axis)

    def _dynamic_parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axis = self.channel_axis % x.ndim
        axes = (axis,) if self.dynamic == "token" else tuple(range(1, x.ndim))
        sizes = [part.stop - part.start for part in self.groups.slices]
        parts = [dynamic_parameters(piece, self.levels, axes) for piece in x.split(sizes, dim=axis)]
        if len(parts) == 1:
            return parts[0]
        spread = [[one.repeat_interleave(size, axis) for one in part] for part, size in zip(parts, sizes, strict=True)]
        scale, zero_point = (torch.cat(tables, dim=axis) for tables in zip(*spread, strict=True))
        return scale, zero_point

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and reconstruct ``x`` [B, …], differentiable in x and in the scale."""
        if self.observer is not None:
            self.observer(x)
            return x
        return fake_quantize(x, *self.parameters_for(x), self.levels, self.clipping)

    def integers(self, x: Tensor) -> Tensor:
        """Return q = code − zero_point of ``x``, as floats."""
        return quantize(x, *self.parameters_for(x), self.levels)

    @torch.no_grad()
    def set_parameters_(self, scale: Tensor, zero_point: Tensor, steps: StepGroups | None = None) -> None:
        """Set scale and zero-point [rows, G], for the present rows or for the new ``steps``.

        Raises:
            ValueError: the shapes do not fit the rows and groups.
        """
        rows = len(self.scale) if steps is None else steps.rows
        if not scale.shape == zero_point.shape == (rows, self.groups.count):
            raise ValueError(
                f"activation parameters of shape {list(scale.shape)} and {list(zero_point.shape)}: "
                f"expected {[rows, self.groups.count]}"
            )
        if steps is not None:
            self.row_of_call = torch.tensor(steps.row_of_call, dtype=torch.long, device=scale.device)
        self.scale = frozen_parameter(scale)
        self.zero_point = frozen_parameter(zero_point)
