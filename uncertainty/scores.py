"""Per-example uncertainty from sampled class log-probabilities.

Axes as in `shapes`: B examples, S posterior samples, C classes. All entropies are in nats.
Every score here grows with uncertainty. Entropy, margin, confidence and ratio look at the prediction
averaged over the samples, the others at how the samples differ.
"""

import torch
from torch import Tensor

from .shapes import check_log_probs

_LEAST_LOG = -1e4  # p log p is zero long before, and NaN at minus infinity


def _entropy_of_mean(probs: Tensor) -> Tensor:  # [B, C] -> [B]
    # entr is exact at p = 0, where -p * log p gives NaN. Rounding of p just above 1 gives a tiny negative.
    entropy: Tensor = torch.special.entr(probs).sum(-1).clamp_min(0)
    return entropy


def _mean_entropy(log_probs: Tensor, probs: Tensor) -> Tensor:  # [B, S, C] twice -> [B]
    # The logarithm is there already: a third of the time of entr.
    return log_probs.clamp_min(_LEAST_LOG).mul_(probs).sum(-1).neg_().mean(1).clamp_min_(0)


def predictive_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of the averaged prediction: total uncertainty, H[E_s p_s].

    Args:
        log_probs: [B, S, C], normalised over C.

    Returns:
        [B], nats, in [0, log C].

    Raises:
        ShapeError, NotADistributionError.
    """
    return _entropy_of_mean(check_log_probs(log_probs).mean(1))


def margin_uncertainty(log_probs: Tensor) -> Tensor:
    """One minus the gap between the two likeliest classes of the averaged prediction.

    Args / Raises: as `predictive_entropy`; needs C >= 2.

    Returns:
        [B], dimensionless, in [0, 1].

    Paper:
        Scheffer et al. 2001; Settles 2009, sec. 3.1.
    """
    probs = check_log_probs(log_probs, min_classes=2).mean(1)
    # Twice the maximum: on a CPU several times faster than topk(2) along a short axis, and exact under ties.
    first, where = probs.max(-1, keepdim=True)
    second = probs.scatter(-1, where, -1.0).amax(-1)
    return (1 - (first.squeeze(-1) - second)).clamp_min(0)


def least_confidence(log_probs: Tensor) -> Tensor:
    """One minus the likeliest class of the averaged prediction.

    Args / Raises: as `predictive_entropy`.

    Returns:
        [B], dimensionless, in [0, 1 - 1/C].
    """
    return (1 - check_log_probs(log_probs).mean(1).amax(-1)).clamp_min(0)


def ratio(log_probs: Tensor) -> Tensor:
    """Second likeliest class over likeliest, of the averaged prediction.

    Args / Raises: as `predictive_entropy`; needs C >= 2.

    Returns:
        [B], dimensionless, in [0, 1].

    Paper:
        Monarch 2021, Human-in-the-Loop Machine Learning, sec. 3.2.
    """
    probs = check_log_probs(log_probs, min_classes=2).mean(1)
    first, where = probs.max(-1, keepdim=True)
    second = probs.scatter(-1, where, -1.0).amax(-1)
    return second / first.squeeze(-1)


def expected_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of each sample, averaged: aleatoric part, what remains when the model is known, E_s H[p_s].

    With one sample it is the predictive entropy.

    Args / Raises: as `predictive_entropy`.

    Returns:
        [B], nats, in [0, log C].

    Paper:
        Houlsby et al. 2011, arXiv:1112.5745, eq. 2, second term.
    """
    return _mean_entropy(log_probs, check_log_probs(log_probs))


def mutual_information(log_probs: Tensor) -> Tensor:
    """Disagreement between samples: epistemic part, H[E_s p_s] - E_s H[p_s]. Zero when S = 1.

    Args / Raises: as `predictive_entropy`.

    Returns:
        [B], nats, in [0, log min(S, C)].

    Paper:
        Houlsby et al. 2011, arXiv:1112.5745, eq. 2 (BALD).
    """
    probs = check_log_probs(log_probs)
    # Rounding below zero is removed per example, before any reduction.
    return (_entropy_of_mean(probs.mean(1)) - _mean_entropy(log_probs, probs)).clamp_min(0)


def variation_ratio(log_probs: Tensor) -> Tensor:
    """Share of samples that do not vote for the class most samples vote for. Zero when S = 1 and no classes tie.

    A sample whose likeliest classes tie splits its vote, so that the order of classes does not matter.

    Args / Raises: as `predictive_entropy`.

    Returns:
        [B], dimensionless, in [0, 1 - 1/C].

    Paper:
        Freeman 1965; Gal et al. 2017, arXiv:1703.02910.
    """
    check_log_probs(log_probs)
    vote = (log_probs == log_probs.amax(-1, keepdim=True)).to(log_probs.dtype)
    share = (vote / vote.sum(-1, keepdim=True)).mean(1)
    return (1 - share.amax(-1)).clamp_min(0)


def mean_std(log_probs: Tensor) -> Tensor:
    """Standard deviation of a class's probability over the samples, averaged over classes. Zero when S = 1.

    Args / Raises: as `predictive_entropy`.

    Returns:
        [B], dimensionless, in [0, sqrt((1 - 1/min(S, C)) / C)].

    Paper:
        Kampffmeyer et al. 2016; Gal et al. 2017, arXiv:1703.02910.
    """
    probs = check_log_probs(log_probs)
    return (probs - probs.mean(1, keepdim=True)).square().mean(1).sqrt().mean(-1)
