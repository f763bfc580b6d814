import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

from csi_job.trial.metrics import confusion, mean_f1, zone_rates

SCORES = [0, 1, 2, 3]


def labels(max_images: int = 40) -> st.SearchStrategy[tuple[torch.Tensor, torch.Tensor]]:
    """Return predictions and truths `[N, 6]`, of skewed classes too."""

    def build(num_images: int, classes: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = np.random.default_rng(seed)
        pred_NZ, true_NZ = random.choice(classes, (2, num_images, 6))
        copied = random.random((num_images, 6)) < 0.5
        return torch.tensor(np.where(copied, true_NZ, pred_NZ)), torch.tensor(true_NZ)

    classes = st.lists(st.integers(0, 4), min_size=1, max_size=8)
    return st.builds(build, st.integers(1, max_images), classes, st.integers(0, 2**32 - 1))


@settings(max_examples=30, deadline=None)
@given(labels(), st.sampled_from(["macro", "weighted"]))
def test_f1_precision_and_recall_equal_scikit_learn(pair, average):
    pred_NZ, true_NZ = pair
    counts_ZKK = confusion(pred_NZ, true_NZ)
    ours = zone_rates(counts_ZKK, average)
    graded_zones = []
    for zone in range(6):
        graded = true_NZ[:, zone] != 4
        true, pred = true_NZ[graded, zone], pred_NZ[graded, zone]
        if not len(true):
            assert all(math.isnan(values[zone]) for values in ours)
            continue
        rates = (f1_score, precision_score, recall_score)
        theirs = [rate(true, pred, labels=SCORES, average=average, zero_division=0) for rate in rates]
        assert [values[zone] for values in ours] == pytest.approx(theirs, abs=1e-14)
        graded_zones.append(theirs[0])
    mean = mean_f1(counts_ZKK, average)
    assert mean == pytest.approx(np.mean(graded_zones), abs=1e-14) if graded_zones else math.isnan(mean)


@settings(max_examples=50, deadline=None)
@given(labels())
def test_counts_equal_scikit_learn_and_add_up_over_batches(pair):
    pred_NZ, true_NZ = pair
    whole_ZKK = confusion(pred_NZ, true_NZ)
    for zone in range(6):
        theirs = confusion_matrix(true_NZ[:, zone], pred_NZ[:, zone], labels=[*SCORES, 4])
        assert whole_ZKK[zone].tolist() == theirs.tolist()
    parts = [confusion(pred, true) for pred, true in zip(pred_NZ.split(7), true_NZ.split(7), strict=True)]
    assert np.array_equal(sum(parts), whole_ZKK)


def test_a_predicted_unknown_is_wrong_and_a_true_unknown_is_excluded():
    true_NZ = torch.tensor([[0] * 6, [0] * 6, [4] * 6])
    right = confusion(torch.tensor([[0] * 6, [0] * 6, [3] * 6]), true_NZ)
    hedged = confusion(torch.tensor([[0] * 6, [4] * 6, [4] * 6]), true_NZ)
    assert zone_rates(right, "weighted").f1.tolist() == [1.0] * 6
    assert zone_rates(hedged, "weighted").f1 == pytest.approx([2 / 3] * 6)
    assert mean_f1(right, "macro") == 0.25  # the three scores that do not occur count as 0, as in scikit-learn


def test_leading_axes_are_bootstrap_samples():
    counts_SZKK = torch.randint(0, 9, (5, 6, 5, 5))
    one_by_one = np.stack([zone_rates(counts_ZKK) for counts_ZKK in counts_SZKK], axis=1)
    assert np.array_equal(zone_rates(counts_SZKK.numpy()), one_by_one)
