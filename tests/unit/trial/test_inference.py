"""Logits of many images."""

from __future__ import annotations

import pytest
import torch

from csi_job.trial.inference import NORMALISATIONS, predict_logits, to_input
from csi_job.trial.model import build_model


@pytest.mark.parametrize(("name", "black", "white"), [("medical", -1, 1), ("imagenet", -1.987, 2.438)])
def test_pixels_are_normalised_without_changing_the_input(name: str, black: float, white: float) -> None:
    image_BHW = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    for pixels in (image_BHW, image_BHW / 255):
        before = pixels.clone()
        image_BCHW = to_input(pixels, name)
        assert image_BCHW.shape == (1, 1, 1, 2)
        assert image_BCHW.flatten().tolist() == pytest.approx([black, white], abs=1e-3)
        assert torch.equal(pixels, before)


def test_every_normalisation_of_the_cache_is_known() -> None:
    from typing import get_args

    from csi_job.cache.settings import Normalisation

    assert set(get_args(Normalisation)) == set(NORMALISATIONS)


def test_logits_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    model = build_model("Custom_1").train()  # even if it was left in training
    images_NHW = torch.randint(0, 256, (7, 32, 32), dtype=torch.uint8)
    one, all_at_once = (predict_logits(model, images_NHW, "medical", size, "cpu") for size in (1, 64))
    assert one.shape == (7, 6, 5)
    assert one.dtype == torch.float32
    assert torch.allclose(one, all_at_once, atol=1e-4)
    assert not one.requires_grad


def test_no_images_give_no_logits() -> None:
    assert predict_logits(build_model("Custom_1"), torch.empty(0, 32, 32), "medical", 4, "cpu").shape == (0, 6, 5)
