import pytest
import torch

from csi_job.trial.augment import augment_batch
from csi_job.trial.settings import AugmentSettings

STILL = {"flip": 0, "rotation_deg": 0, "shift": 0, "scale": 0, "brightness": 0, "contrast": 0, "noise": 0}


def augment(
    image_BHW: torch.Tensor, zones_BZ: torch.Tensor | None = None, *, seed: int = 0, **amounts: float
) -> tuple[torch.Tensor, torch.Tensor]:
    settings = AugmentSettings.model_validate({**STILL, **amounts})
    zones_BZ = torch.zeros(len(image_BHW), 6, dtype=torch.int64) if zones_BZ is None else zones_BZ
    return augment_batch(image_BHW, zones_BZ, settings, torch.Generator().manual_seed(seed))


def centre(image_BHW: torch.Tensor) -> torch.Tensor:
    """Return the centre of brightness `[B, 2]` (x, y) in pixels."""
    side = torch.arange(image_BHW.shape[-1], dtype=torch.float32)
    total = image_BHW.sum(dim=(1, 2))
    return torch.stack([(image_BHW.sum(1) * side).sum(1) / total, (image_BHW.sum(2) * side).sum(1) / total], dim=1)


def spot(side_px: int = 64, x: int = 32, y: int = 32, num_images: int = 50) -> torch.Tensor:
    image_BHW = torch.zeros(num_images, side_px, side_px)
    image_BHW[:, y - 3 : y + 3, x - 3 : x + 3] = 0.8
    return image_BHW


def test_all_zero_settings_change_nothing():
    image_BHW = torch.randint(0, 256, (4, 32, 32), dtype=torch.uint8)
    zones_BZ = torch.randint(0, 5, (4, 6))
    changed_BHW, same_BZ = augment(image_BHW, zones_BZ)
    assert torch.allclose(changed_BHW, image_BHW / 255, atol=1e-5)
    assert torch.equal(same_BZ, zones_BZ)


def test_a_flip_mirrors_the_image_and_swaps_left_and_right_labels():
    image_BHW = torch.rand(4, 32, 32)
    zones_BZ = torch.tensor([[0, 1, 2, 3, 4, 0]]).expand(4, -1)
    flipped_BHW, swapped_BZ = augment(image_BHW, zones_BZ, flip=1)
    assert torch.allclose(flipped_BHW, image_BHW.flip(-1), atol=1e-5)
    assert swapped_BZ.tolist() == [[1, 0, 3, 2, 0, 4]] * 4


def test_labels_follow_their_zones_pixels(make_split):
    split = make_split(64, 48)  # each zone is as bright as its score
    image_BHW, zones_BZ = augment(
        split.images_NHW, split.zones_NZ, flip=0.5, rotation_deg=7, shift=0.05, scale=0.1, noise=0.02
    )
    middle_BZ = torch.stack(
        [image_BHW[:, y - 2 : y + 2, x - 2 : x + 2].mean((1, 2)) for y in (8, 24, 40) for x in (12, 36)], 1
    )
    assert torch.equal((middle_BZ * 255 / 50 - 0.2).round().clamp(0, 4).long(), zones_BZ)
    assert not torch.equal(zones_BZ, split.zones_NZ)  # some were flipped


def test_the_flip_rate_matches_the_setting():
    zones_BZ = torch.tensor([[0, 1, 0, 1, 0, 1]]).expand(2000, -1)
    _, swapped_BZ = augment(torch.zeros(2000, 8, 8), zones_BZ, flip=0.3)
    assert 0.25 < (swapped_BZ[:, 0] == 1).float().mean() < 0.35


def test_shifts_use_the_full_range_but_no_more():
    moved_B2 = (centre(augment(spot(), shift=0.1)[0]) - centre(spot())).abs()
    assert 0.07 * 64 < moved_B2.max() <= 0.1 * 64 + 0.1


def test_rotations_are_about_the_centre_and_limited():
    arm_B2 = centre(augment(spot(x=52), rotation_deg=20)[0]) - 31.5
    angle_B = torch.rad2deg(torch.atan2(arm_B2[:, 1], arm_B2[:, 0])).abs()
    assert 15 < angle_B.max() <= 20.5
    assert torch.allclose(arm_B2.norm(dim=1), torch.tensor(20.0), atol=0.3)


def test_scaling_is_limited_in_both_directions():
    arm_B = centre(augment(spot(x=52), scale=0.2)[0])[:, 0] - 31.5
    assert 0.79 * 20 < arm_B.min() < 0.85 * 20
    assert 1.15 * 20 < arm_B.max() < 1.22 * 20


def test_a_flipped_image_is_warped_like_any_other():
    flipped, _ = augment(spot(x=52), rotation_deg=20, shift=0.1, flip=1)
    mirrored, _ = augment(spot(x=52).flip(-1), rotation_deg=20, shift=0.1)
    assert torch.allclose(flipped, mirrored, atol=1e-4)


def test_intensity_changes_per_image_and_stays_in_range():
    grey_BHW = torch.full((200, 8, 8), 0.5)
    mean_B = augment(grey_BHW, brightness=0.2)[0].mean((1, 2))
    assert 0.3 <= mean_B.min() < 0.35
    assert 0.65 < mean_B.max() <= 0.7
    steps_BHW = torch.tensor([0.3, 0.7]).repeat(200, 8, 4)
    spread_B = augment(steps_BHW, contrast=0.5)[0].std((1, 2)) / steps_BHW.std((1, 2))
    assert 0.5 <= spread_B.min() < 0.6
    assert 1.4 < spread_B.max() <= 1.5
    noise_B = augment(grey_BHW, noise=0.1)[0].std((1, 2))
    assert 0.08 < noise_B.max() < 0.13
    wild_BHW, _ = augment(torch.rand(50, 8, 8), brightness=0.9, contrast=0.9, noise=0.9)
    assert (wild_BHW.min(), wild_BHW.max()) == (0, 1)


def test_the_seed_determines_the_images():
    amounts = {"flip": 0.5, "rotation_deg": 9, "shift": 0.1, "scale": 0.1, "brightness": 0.1, "noise": 0.1}
    image_BHW = torch.rand(6, 32, 32)
    once, again, other = (augment(image_BHW, seed=seed, **amounts)[0] for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len({image.sum().item() for image in augment(image_BHW[:1].expand(6, -1, -1), **amounts)[0]}) == 6


@pytest.mark.parametrize("side_px", [32, 33, 224])
def test_image_size_is_preserved(side_px):
    image_BHW = torch.zeros(2, side_px, side_px, dtype=torch.uint8)
    changed_BHW, _ = augment(image_BHW, flip=0.5, rotation_deg=5)
    assert (changed_BHW.shape, changed_BHW.dtype) == (image_BHW.shape, torch.float32)
