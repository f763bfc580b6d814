import pytest
import torch
from torch.nn import functional

from csi_job.trial.loss import MAX_CLASS_WEIGHT, CsiLoss, class_weights


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(9, 6, 5), torch.randint(0, 5, (9, 6))


@pytest.mark.parametrize("unknown_weight", [0.1, 0.3, 1.0])
def test_the_loss_is_torchs_weighted_cross_entropy_over_the_number_of_labels(unknown_weight):
    logits_BZK, zones_BZ = batch()
    logits_BZK.requires_grad_()
    weight = torch.tensor([1, 1, 1, 1, unknown_weight])
    theirs = functional.cross_entropy(logits_BZK.flatten(0, 1), zones_BZ.flatten(), weight, reduction="sum") / (9 * 6)
    ours = CsiLoss(unknown_weight)(logits_BZK, zones_BZ)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, logits_BZK)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.mark.parametrize("unknown_weight", [0.0, 0.1, 1.0])
def test_a_batch_of_only_unknown_zones_is_finite(unknown_weight):
    logits_BZK = batch()[0].requires_grad_()
    loss = CsiLoss(unknown_weight)(logits_BZK, torch.full((9, 6), 4))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits_BZK.grad).all()
    assert (loss == 0) == (unknown_weight == 0)


def test_half_precision_logits_are_summed_in_full_precision():
    logits_BZK, zones_BZ = batch()
    loss = CsiLoss(0.3)(logits_BZK.bfloat16(), zones_BZ)
    assert loss.dtype == torch.float32
    assert loss == CsiLoss(0.3)(logits_BZK.bfloat16().float(), zones_BZ)


def test_balancing_weights_are_inverse_frequencies():
    zones_NZ = torch.zeros(100, 6, dtype=torch.int64)
    zones_NZ[:20, 0] = 3  # zone 0: 80 zeros and 20 threes; the other zones: only zeros
    zones_NZ[:10, 1] = 4  # unknown labels do not count as graded ones
    zones_NZ[0, 2] = 1
    weights_ZK = class_weights(zones_NZ)
    assert weights_ZK[0].tolist() == pytest.approx([100 / 4 / 80, 1, 1, 100 / 4 / 20, 1])
    assert weights_ZK[1, 0] == pytest.approx(90 / 4 / 90)
    assert weights_ZK[2, 1] == MAX_CLASS_WEIGHT


def test_balancing_never_changes_the_unknown_class():
    logits_BZK, zones_BZ = batch()
    balance_ZK = class_weights(zones_BZ)
    log_prob_BZK = logits_BZK.log_softmax(-1)
    expected = 0.0
    for image in range(9):
        for zone in range(6):
            true = zones_BZ[image, zone]
            expected -= log_prob_BZK[image, zone, true] * (0.2 if true == 4 else balance_ZK[zone, true])
    assert CsiLoss(0.2, balance_ZK)(logits_BZK, zones_BZ).item() == pytest.approx(expected.item() / 54, rel=1e-5)
