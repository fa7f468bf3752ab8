"""Adam over the free variables of a stage, resumable to the same bits."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


SMALL_GRADIENT = 4e-5
"""Adam's epsilon, for gradients of the loss over its first value: what moves a variable by its whole range would change
the loss by so little that the variable is better left alone. Most roundings are of that kind. Without it (1e-8) six
times as many turn, and the held-out error is not lower."""


def cosine_decay(progress: float) -> float:
    """From 1 to 0, slow at both ends, for a progress of 0..1."""
    return (1 + math.cos(math.pi * progress)) / 2


def linear_decay(progress: float) -> float:
    """From 1 to 0, for a progress of 0..1."""
    return 1 - progress


class VariableOptimizer:
    """Adam with a rate per variable, and a decay to zero over ``total`` iterations.

    Gradients are divided by ``unit``, the loss before training, so that nothing depends on how large errors are.

    Args:
        epsilon: of Adam, for gradients so divided.
        lazy: names of variables of which an element whose gradient is exactly zero is skipped, moments and all, as
            ``torch.optim.SparseAdam`` does: rows of a table that no sample has used would else be carried on by what
            earlier samples left in the moments.
        weight_decay: of variables by name (AdamW, Loshchilov & Hutter 2019); 0 where there is none.
    """

    def __init__(
        self,
        variables: Mapping[str, Tensor],
        rates: Mapping[str, float],
        total: int,
        unit: float,
        decay: Callable[[float], float] = cosine_decay,
        epsilon: float = SMALL_GRADIENT,
        lazy: Iterable[str] = (),
        weight_decay: Mapping[str, float] | None = None,
    ) -> None:
        self.variables, self.rates, self.total, self.unit = dict(variables), dict(rates), total, unit
        self.decay, self.lazy = decay, tuple(lazy)
        decays = weight_decay or {}
        groups = [
            {"params": [variable], "lr": rates[name], "weight_decay": decays.get(name, 0.0)}
            for name, variable in variables.items()
        ]
        self.adam = torch.optim.AdamW(groups, eps=epsilon)

    def step(self, iteration: int) -> None:
        """Take the step of an iteration, 0..total−1."""
        factor = self.decay(iteration / self.total)
        for name, group in zip(self.variables, self.adam.param_groups, strict=True):
            group["lr"] = self.rates[name] * factor
        for variable in self.variables.values():
            if variable.grad is not None:
                variable.grad.div_(self.unit)
        kept = [part for name in self.lazy for part in self._unused(self.variables[name])]
        self.adam.step()
        for tensor, unused, values in kept:
            tensor[unused] = values
        self.adam.zero_grad(set_to_none=True)

    def _unused(self, variable: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """A variable and its moments, each with where the gradient is zero, and with its values there."""
        assert variable.grad is not None
        unused, moments = variable.grad == 0, self.adam.state.get(variable, {})
        own = [variable.detach(), *(moments[key] for key in MOMENTS[1:] if key in moments)]
        return [(tensor, unused, tensor[unused]) for tensor in own]

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}:{key}": value
            for name, variable in self.variables.items()
            for key, value in moments_of(self.adam, variable).items()
        }

    def load_state_(self, state: Mapping[str, Tensor]) -> None:
        for name, variable in self.variables.items():
            set_moments_(
                self.adam, variable, {key: state[f"{name}:{key}"] for key in MOMENTS if f"{name}:{key}" in state}
            )


def moments_of(adam: torch.optim.Adam, variable: Tensor) -> dict[str, Tensor]:
    """Return what Adam keeps of a variable, which its next step changes; nothing before its first."""
    return {key: value.detach() for key, value in adam.state.get(variable, {}).items() if key in MOMENTS}


def set_moments_(adam: torch.optim.Adam, variable: Tensor, moments: Mapping[str, Tensor]) -> None:
    """Let Adam go on from what ``moments_of`` returned, which may be among other tensors."""
    if "step" in moments:
        on_device = {key: moments[key].to(variable.device) for key in MOMENTS[1:]}
        adam.state[variable] = {"step": moments["step"].cpu(), **on_device}
