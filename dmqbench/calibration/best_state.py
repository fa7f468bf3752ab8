"""What stages share that train in slices of iterations and keep the best held-out state, resumable to the same bits."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dmqbench.calibration.stage import CalibrationDiverged
from dmqbench.calibration.variable_optimizer import VariableOptimizer

FACTS, VARIABLE, BEST, ADAM = "facts:", "variable:", "best:", "adam:"
"""How tensors of a checkpoint begin: what was found, free variables, the best of their states, the optimizer's."""


def slices(total: int, length: int) -> list[range]:
    """Cut ``total`` iterations into parts of ``length``; the last may be shorter."""
    return [range(start, min(start + length, total)) for start in range(0, total, length)]


def slices_of_checks(total: int, checks: int) -> list[range]:
    """Cut ``total`` iterations into at most ``checks`` parts, each of which ends with a look at the held-out error."""
    return slices(total, -(-total // min(checks, total)))


def require_finite(variables: Mapping[str, Tensor], place: str, iteration: str) -> None:
    """Raise CalibrationDiverged unless every gradient of ``variables`` is finite."""
    gradients = {name: value.grad for name, value in variables.items() if value.grad is not None}
    finite = torch.stack([gradient.isfinite().all() for gradient in gradients.values()]).tolist()
    if not all(finite):
        name = list(gradients)[finite.index(False)]
        raise CalibrationDiverged(f"{place}: the gradient of {name} at {iteration} is not finite")


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the names that they have in a checkpoint."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def part_of(progress: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors that ``prefixed`` has named so, by their own names."""
    return {name.removeprefix(prefix): value for name, value in progress.items() if name.startswith(prefix)}


def training_progress(
    variables: Mapping[str, Tensor], best: Mapping[str, Tensor], optimizer: VariableOptimizer
) -> dict[str, Tensor]:
    """Return what training goes on from, as a checkpoint has it."""
    return prefixed(VARIABLE, variables) | prefixed(BEST, best) | prefixed(ADAM, optimizer.state())


def best_of(progress: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the best state so far that a checkpoint holds."""
    return {name: value.to(device) for name, value in part_of(progress, BEST).items()}
