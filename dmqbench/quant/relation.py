"""Relation distillation: how the positions of a feature map relate to each other, in student and teacher.

The relation of two positions is the cosine of their feature vectors; a row of the map, as a softmax, says which
positions one position is like. MPQ-DM (AAAI 2025) averages the features of a window of consecutive network calls first:
"time-smoothed relation distillation" (TRD).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**20
"""Elements of a piece of the map [B, rows, P] that is held at a time; at least one row of every sample is."""

SMALLEST_NORM = 1e-12
"""A feature vector that is no longer than this has no direction: its cosines are 0, and no gradient moves it."""


def tokens(feature: Tensor) -> Tensor:
    """Return a feature [B, C, H, W] or [B, N, C] as one vector per position, [B, P, C].

    Raises:
        ValueError: it has another number of dimensions.
    """
    if feature.ndim == 4:
        return feature.flatten(2).transpose(1, 2)
    if feature.ndim == 3:
        return feature
    raise ValueError(f"a feature of shape {list(feature.shape)} has no positions: expected [B, C, H, W] or [B, N, C]")


def smoothed(window: Sequence[Tensor]) -> Tensor:
    """The mean [B, P, C] of the features of consecutive network calls, each as ``tokens`` reads them.

    A gradient reaches every call; a call that is to be held fixed is detached before.
    """
    return tokens(torch.stack(list(window)).mean(dim=0))


def relation_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0, block: int = BLOCK) -> Tensor:
    """Return the mean over samples and positions of KL(p_teacher ‖ p_student), a scalar ≥ 0.

    p is a row of the relation map, softmax(cosine / temperature) over all positions, the position itself included.
    The published code has the sum instead of the mean, times 100. The map [B, P, P] is never formed: rows are
    visited in blocks, and the gradient is gathered with the value, so that nothing is computed twice and memory is
    B·P·C and a few blocks. Differentiable once, and in the student alone.

    Args:
        student: features [B, P, C], of any length: only their directions count.
        teacher: of the same shape.
        temperature: above 0.
        block: elements of a piece of the map.

    Raises:
        ValueError: the shapes differ or are not [B, P, C] with B, P and C from 1, or the temperature is not above 0.
    """
    if student.shape != teacher.shape or student.ndim != 3 or not student.numel():
        raise ValueError(
            f"features of shapes {list(student.shape)} and {list(teacher.shape)}: expected the same [B, P, C] twice"
        )
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: must be above 0")
    return _Divergence.apply(_directions(student), _directions(teacher.detach()), temperature, block)


def _directions(features: Tensor) -> Tensor:
    """Each vector [..., C] at length 1, or 0 where it has no direction."""
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / norm.masked_fill(norm <= SMALLEST_NORM, torch.inf)


class _Divergence(torch.autograd.Function):
    """Of directions [B, P, C]. With S the student's map, dKL/dS = (p_student − p_teacher) / temperature per row; S
    holds every direction as a row and as a column, and its gradient has a term for each."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float, block: int) -> Tensor:
        batch, positions, _ = student.shape
        total = student.new_zeros(())
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        for rows in torch.arange(positions).split(max(1, block // (batch * positions))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            log_student = _log_rows(student, part, temperature)
            log_teacher = _log_rows(teacher, part, temperature)
            of_teacher = log_teacher.exp()
            total += (log_teacher.sub_(log_student).mul_(of_teacher)).sum()
            if gradient is not None:
                of_map = log_student.exp_().sub_(of_teacher)
                gradient[:, part].baddbmm_(of_map, student)
                gradient.baddbmm_(of_map.mT, student[:, part])
        scale = 1 / (batch * positions)
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(scale / temperature))
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None


def _log_rows(directions: Tensor, part: slice, temperature: float) -> Tensor:
    """The logarithms [B, rows, P] of the rows ``part`` of the relation map."""
    return (directions[:, part] @ directions.mT).div_(temperature).log_softmax(-1)
