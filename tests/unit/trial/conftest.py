"""Small synthetic splits: a zone is as bright as its score, so that a model learns them at once."""

import pytest
import torch

from csi_job.cache.dataset import SplitData
from csi_job.trial.memory import fitting_sizes


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    fitting_sizes.clear()


@pytest.fixture
def make_split():
    """Return `make_split(num_images, side_px=32, seed=0)`."""

    def make(num_images, side_px=32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        zones_NZ = torch.randint(0, 5, (num_images, 6), generator=generator)
        rows = torch.arange(side_px) * 3 // side_px
        columns = torch.arange(side_px) * 2 // side_px
        bright_NHW = zones_NZ.view(-1, 3, 2)[:, rows][:, :, columns] * 50.0
        noise_NHW = torch.rand(num_images, side_px, side_px, generator=generator) * 20
        return SplitData(
            images_NHW=(bright_NHW + noise_NHW).to(torch.uint8),
            zones_NZ=zones_NZ,
            patients_N=torch.arange(num_images),
            pseudonyms=tuple(f"{index:012x}" for index in range(num_images)),
            normalisation="medical",
        )

    return make
