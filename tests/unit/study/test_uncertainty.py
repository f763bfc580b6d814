"""The standard error of val_f1 is that of drawing patients."""

from __future__ import annotations

import numpy as np
import torch

from csi_job.study.objective import f1_standard_error
from csi_job.trial.metrics import confusion, mean_f1


def draw(num_images: int, seed: int, accuracy: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    true_NZ = torch.randint(0, 4, (num_images, 6), generator=generator)
    wrong_NZ = torch.randint(0, 4, (num_images, 6), generator=generator)
    is_right_NZ = torch.rand(num_images, 6, generator=generator) < accuracy
    return torch.where(is_right_NZ, true_NZ, wrong_NZ), true_NZ


def test_it_is_close_to_the_spread_over_new_patients() -> None:
    f1s = [mean_f1(confusion(*draw(60, seed)).numpy()) for seed in range(200)]
    errors = [f1_standard_error(*draw(60, seed), np.arange(60), "macro") for seed in range(300, 310)]
    assert 0.7 < np.mean(errors) / np.std(f1s) < 1.4


def test_images_of_one_patient_are_drawn_together() -> None:
    pred_NZ, true_NZ = draw(20, seed=1)
    three_times = torch.cat([pred_NZ] * 3), torch.cat([true_NZ] * 3)
    alone = f1_standard_error(pred_NZ, true_NZ, np.arange(20), "macro")
    together = f1_standard_error(*three_times, np.tile(np.arange(20), 3), "macro")
    assert np.isclose(alone, together)
    assert f1_standard_error(*three_times, np.arange(60), "macro") < 0.8 * alone


def test_a_perfect_model_and_unknown_zones_give_numbers() -> None:
    _, true_NZ = draw(20, seed=2)
    assert f1_standard_error(true_NZ, true_NZ, np.arange(20), "weighted") == 0
    true_NZ[:, 1:] = 4
    assert np.isfinite(f1_standard_error(draw(20, seed=3)[0], true_NZ, np.arange(20), "macro"))
