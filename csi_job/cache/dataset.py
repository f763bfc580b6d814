"""The splits of a finished cache as tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from csi_job.cache.manifest import CacheInfo, images_file, load_info, read_split_table
from csi_job.errors import DataError

__all__ = ["CacheInfo", "SplitData", "load_info", "load_split"]


@dataclass(frozen=True)
class SplitData:
    """One split, N images.

    `images_NHW` is uint8; `zones_NZ` int64 `[N, 6]` with the scores 0-3 and 4 for unknown; `patients_N` int64, the
    index of each image's patient within the whole cache; `pseudonyms` stand for the FileIDs.
    """

    images_NHW: torch.Tensor  # noqa: N815 - a tensor carries its axes
    zones_NZ: torch.Tensor  # noqa: N815
    patients_N: torch.Tensor  # noqa: N815
    pseudonyms: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.pseudonyms)

    def to(self, device: torch.device | str) -> SplitData:
        """Return the split with its tensors on a device."""
        return replace(
            self,
            images_NHW=self.images_NHW.to(device),
            zones_NZ=self.zones_NZ.to(device),
            patients_N=self.patients_N.to(device),
        )


def load_split(folder: Path, name: Literal["train", "validation", "test"]) -> SplitData:
    """Open a split of a finished cache; its images stay on disk until they are read (a private memory map).

    Args:
        folder: the folder that `build_cache` returned.
        name: which split.

    Raises:
        DataError: the cache is damaged or of another version.

    """
    info = load_info(folder)
    rows = [row for row in read_split_table(folder) if row.split == name]
    try:
        images_NHW = np.load(folder / images_file(name), mmap_mode="c")
    except (OSError, ValueError, EOFError):
        raise DataError(f"{images_file(name)} of the cache is damaged", got=str(folder)) from None
    expected = (len(rows), info.image_size_px, info.image_size_px)
    if images_NHW.shape != expected or images_NHW.dtype != np.uint8 or len(rows) != info.num_images[name]:
        raise DataError(
            f"{images_file(name)} of the cache is damaged", got=images_NHW.shape, allowed=f"uint8 {expected}"
        )
    return SplitData(
        images_NHW=torch.from_numpy(images_NHW),
        zones_NZ=torch.tensor([row.zones for row in rows], dtype=torch.int64),
        patients_N=torch.tensor([row.patient_index for row in rows], dtype=torch.int64),
        pseudonyms=tuple(row.image for row in rows),
    )
