from typing import get_args

import pytest
import torch

from csi_job.cache.settings import Normalisation
from csi_job.trial.inference import NORMALISATIONS, choose_precision, predict_logits, to_input
from csi_job.trial.model import build_model


@pytest.mark.parametrize(("name", "black", "white"), [("medical", -1, 1), ("imagenet", -1.987, 2.438)])
def test_pixels_are_normalised_without_changing_the_input(name, black, white):
    assert set(get_args(Normalisation)) == set(NORMALISATIONS)
    image_BHW = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    for pixels in (image_BHW, image_BHW / 255):
        before = pixels.clone()
        image_BCHW = to_input(pixels, name)
        assert image_BCHW.shape == (1, 1, 1, 2)
        assert image_BCHW.flatten().tolist() == pytest.approx([black, white], abs=1e-3)
        assert torch.equal(pixels, before)


def test_logits_do_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    model = build_model("Custom_1").train()  # even if it was left in training
    images_NHW = torch.randint(0, 256, (7, 32, 32), dtype=torch.uint8)
    one, all_at_once = (predict_logits(model, images_NHW, "medical", size, "cpu") for size in (1, 64))
    assert one.shape == (7, 6, 5)
    assert one.dtype == torch.float32
    assert torch.allclose(one, all_at_once, atol=1e-4)
    assert not one.requires_grad
    assert predict_logits(model, images_NHW[:0], "medical", 4, "cpu").shape == (0, 6, 5)


@pytest.mark.parametrize(
    ("capability", "wanted", "chosen", "line"),
    [
        ((9, 0), "auto", "bf16", "computing in bf16 on a GPU (compute capability 9.0)"),
        ((8, 0), "auto", "bf16", "computing in bf16 on a GPU (compute capability 8.0)"),
        ((7, 5), "auto", "fp16", "computing in fp16 with loss scaling on a GPU (compute capability 7.5)"),
        ((7, 0), "auto", "fp16", "computing in fp16 with loss scaling on a GPU (compute capability 7.0)"),
        ((6, 1), "auto", "fp32", "computing in fp32 on a GPU (compute capability 6.1)"),
        ((7, 5), "bf16", "bf16", "computing in bf16, which this GPU emulates slowly on a GPU (compute capability 7.5)"),
        ((8, 6), "fp32", "fp32", "computing in fp32, convolutions in TF32 on a GPU (compute capability 8.6)"),
        ((8, 6), "fp16", "fp16", "computing in fp16 with loss scaling on a GPU (compute capability 8.6)"),
    ],
)
def test_the_precision_is_one_that_the_gpu_has_in_hardware_and_is_logged_once(
    monkeypatch, logged, capability, wanted, chosen, line
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # as torch says where it is emulated
    choose_precision.cache_clear()
    assert [choose_precision(wanted, torch.device("cuda", 0)) for _ in range(2)] == [chosen] * 2
    assert logged.messages == [line]
    choose_precision.cache_clear()
    assert choose_precision(wanted, torch.device("cpu")) == ("fp32" if wanted == "auto" else wanted)
