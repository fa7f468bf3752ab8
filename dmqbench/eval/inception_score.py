"""The Inception score: how sure a classifier is of each sample, and how evenly the samples fill its classes."""

from itertools import pairwise

import torch
from torch import Tensor

from dmqbench.eval.features import require_matrix
from dmqbench.eval.measurement import Estimate
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.statistics import Replicated, even_groups, group_edges, jackknife

SPLITS = 10
LEAST = 1000
"""A split of n samples never scores above n: below a hundred it says more of n than of the samples."""


def inception_score_estimate(logits: Tensor) -> Estimate:
    """Return the mean over 10 consecutive splits of exp(mean KL(p(y|x) ‖ p(y))), for logits [N, K], in [1, K].

    Salimans et al. 2016, "Improved techniques for training GANs". The ADM suite cuts splits of 5,000, which is the
    same for 50,000 samples. Samples are taken in the order in which they come. A group is deleted before what is left
    is split again. extra["std"]: standard deviation (of the population) over the splits, as papers give it; it is not
    the error of the mean.

    ``MetricUnavailable`` below 1,000 samples.
    """
    require_matrix(logits, "logits", "K")
    n = len(logits)
    if n < LEAST:
        raise MetricUnavailable(f"an Inception score needs at least {LEAST} samples, got {n}")
    # Σ p log p of each sample and p itself are all that a score takes: a deletion computes no exponential again.
    logs = logits.double().log_softmax(dim=1)
    probabilities = logs.exp()
    certainty = (probabilities * logs).sum(dim=1)
    scores = _scores(probabilities, certainty)
    replicates = []
    for low, high in pairwise(group_edges(n, even_groups(n)).tolist()):
        kept = [torch.cat([values[:low], values[high:]]) for values in (probabilities, certainty)]
        replicates.append(float(_scores(*kept).mean()))
    statistic = Replicated(float(scores.mean()), n, tuple(replicates))
    return Estimate.of(statistic, jackknife(statistic).ci95, std=float(scores.std(correction=0)))


def _scores(probabilities: Tensor, certainty: Tensor) -> Tensor:
    """Return the score of each split [10]; KL = Σ p log p − Σ p log q, and the mean of the last is Σ q log q."""
    edges = [len(certainty) * split // SPLITS for split in range(SPLITS + 1)]
    marginals = torch.stack([probabilities[low:high].mean(dim=0) for low, high in pairwise(edges)])
    means = torch.stack([certainty[low:high].mean() for low, high in pairwise(edges)])
    return (means - torch.special.xlogy(marginals, marginals).sum(dim=1)).exp()
