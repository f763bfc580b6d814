"""The loss: cross-entropy over the classes of each zone, with the weight of ungraded zones and of rare scores."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES, SCORES, UNKNOWN

MAX_CLASS_WEIGHT = 10.0  # a score that occurs once or twice must not dominate the loss


class CsiLoss(nn.Module):
    """Weighted cross-entropy, summed and divided by the number of labels.

    Unlike torch's weighted mean, it is not divided by the sum of the weights. So an ungraded label has the same
    weight in every batch, an all-ungraded batch stays finite at any weight, and micro-batches add up to the batch.
    """

    weight_ZK: Tensor  # noqa: N815 - tensors carry their axes

    def __init__(self, unknown_weight: float, class_weights_ZK: Tensor | None = None) -> None:
        """Set the weight of class 4 and, for class balancing, those of the scores (from `class_weights`)."""
        super().__init__()
        weight_ZK = torch.ones(NUM_ZONES, NUM_CLASSES) if class_weights_ZK is None else class_weights_ZK.clone()
        weight_ZK[:, UNKNOWN] = unknown_weight
        self.register_buffer("weight_ZK", weight_ZK)

    def forward(self, logits_BZK: Tensor, zones_BZ: Tensor) -> Tensor:
        """Return the scalar float32 loss of `logits_BZK` for the classes `zones_BZ` (int64, 0-4)."""
        log_prob_BZK = functional.log_softmax(logits_BZK.float(), dim=-1)
        truth_BZ1 = zones_BZ.unsqueeze(-1)
        weight_BZK = self.weight_ZK.expand(len(zones_BZ), -1, -1)
        chosen_BZ1 = log_prob_BZK.gather(-1, truth_BZ1) * weight_BZK.gather(-1, truth_BZ1)
        return -chosen_BZ1.mean()


def class_weights(zones_NZ: Tensor) -> Tensor:
    """Return weights that balance the scores of each zone.

    Args:
        zones_NZ: int64 classes 0-4 of the training images.

    Returns:
        `class_weights_ZK`, float32: proportional to the inverse frequency of a score among the zone's graded labels,
        1 if all scores are equally frequent, at most `MAX_CLASS_WEIGHT`, and 1 for scores that do not occur.
    """
    one_hot_NZK = functional.one_hot(zones_NZ, NUM_CLASSES)
    counts_ZK = one_hot_NZK.sum(dim=0).double()
    graded_Z1 = counts_ZK[:, : len(SCORES)].sum(dim=1, keepdim=True)
    weights_ZK = (graded_Z1 / (len(SCORES) * counts_ZK)).clamp(max=MAX_CLASS_WEIGHT)
    return torch.where(counts_ZK > 0, weights_ZK, torch.ones_like(weights_ZK)).float()
