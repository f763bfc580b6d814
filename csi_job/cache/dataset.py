"""A finished cache, opened: its manifest, and its splits as tensors."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch

from csi_job.cache.local_copy import COPIED, local_arrays
from csi_job.cache.manifest import CacheInfo, images_file, load_info, read_split_table
from csi_job.errors import DataError
from csi_job.radiographs.split import SPLITS

SplitName = Literal["train", "validation", "test"]
NUM_AHEAD = 3  # batches that are gathered before they are needed


@dataclass(frozen=True)
class SplitData:
    """One split, N images.

    `images_NHW` is uint8; `zones_NZ` int64 `[N, 6]` with the scores 0-3 and 4 for unknown; `patients_N` int64, the
    index of each image's patient within the entire cache; `pseudonyms` stand for the FileIDs; `normalisation` names
    the one that models take the pixels in.
    """

    images_NHW: torch.Tensor  # noqa: N815 - a tensor carries its axes
    zones_NZ: torch.Tensor  # noqa: N815
    patients_N: torch.Tensor  # noqa: N815
    pseudonyms: tuple[str, ...]
    normalisation: str
    _copies: dict[torch.device, "SplitData"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.pseudonyms)

    def on(self, device: torch.device) -> "SplitData":
        """Return the split with its tensors on a device, where one copy stays for every trial of this process."""
        if device == self.images_NHW.device:
            return self
        if device not in self._copies:
            tensors = {name: getattr(self, name).to(device) for name in ("images_NHW", "zones_NZ", "patients_N")}
            self._copies[device] = replace(self, **tensors)
        return self._copies[device]

    def leave_devices(self) -> None:
        """Drop the copies on devices."""
        self._copies.clear()

    def fetch_ahead(
        self, indices: Iterable[torch.Tensor], device: torch.device
    ) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Yield the images and zones of batches on a device; a thread gathers the next ones from the host meanwhile.

        For a GPU they are gathered in pinned memory and copied on their own stream, and the host waits until the
        GPU is at most `NUM_AHEAD` batches behind, which bounds the memory. Close the generator to end the thread.
        """
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        used: deque[torch.cuda.Event] = deque()
        thread = ThreadPoolExecutor(1, "batches")
        waiting = (thread.submit(self._gather, index_B.cpu(), pinned=stream is not None) for index_B in indices)
        gathered = deque(islice(waiting, NUM_AHEAD))
        try:
            while gathered:
                batch = gathered.popleft().result()
                gathered.extend(islice(waiting, 1))
                if stream is None:
                    yield batch
                    continue
                current = torch.cuda.current_stream(device)
                with torch.cuda.stream(stream):
                    image_BHW, zones_BZ = (tensor.to(device, non_blocking=True) for tensor in batch)
                current.wait_stream(stream)
                image_BHW.record_stream(current)
                zones_BZ.record_stream(current)
                yield image_BHW, zones_BZ
                used.append(current.record_event())
                if len(used) > NUM_AHEAD:
                    used.popleft().synchronize()
        finally:
            thread.shutdown(cancel_futures=True)

    def _gather(self, index_B: torch.Tensor, *, pinned: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and zones; torch reuses pinned memory as soon as what was in it has been copied to the GPU."""
        image_BHW = torch.empty((len(index_B), *self.images_NHW.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        # One core, unlike torch's indexing, which would compete with the training for all of them.
        np.take(self.images_NHW.numpy(), index_B.numpy(), axis=0, out=image_BHW.numpy(), mode="clip")
        zones_BZ = self.zones_NZ[index_B]
        return image_BHW, zones_BZ.pin_memory() if pinned else zones_BZ


@dataclass(frozen=True)
class Cache:
    """A finished cache; each file is read at most once, and only when it is needed."""

    folder: Path
    info: CacheInfo
    local_copy_gib: float = 0.0
    """What a copy on this node of the arrays for training may take; 0: none is made."""
    _splits: dict[SplitName, SplitData] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path, local_copy_gib: float = 0.0) -> Self:
        """Open the folder that `build_cache` returned; raise `DataError` if its manifest is missing or damaged."""
        return cls(folder, load_info(folder), local_copy_gib)

    @property
    def train(self) -> SplitData:
        """The split to learn from."""
        return self.split("train")

    @property
    def validation(self) -> SplitData:
        """The split that chooses epochs and hyperparameters."""
        return self.split("validation")

    @property
    def num_patients(self) -> dict[str, int]:
        """Number of patients in each split."""
        return {name: len(np.unique(rows_N["patient_index"])) for name, rows_N in self._rows.items()}

    def split(self, name: SplitName) -> SplitData:
        """Return a split, whose images stay on disk until they are read (a private memory map).

        Raises:
            DataError: the cache is damaged or of another version.
        """
        if name not in self._splits:
            self._splits[name] = self._load(name)
        return self._splits[name]

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        rows_N = read_split_table(self.folder, self.info)
        return {name: rows_N[rows_N["split"] == place] for place, name in enumerate(SPLITS)}

    @cached_property
    def _copied_to(self) -> Path:
        return local_arrays(self.folder, self.info, self.local_copy_gib)

    def _load(self, name: SplitName) -> SplitData:
        rows_N, side_px = self._rows[name], self.info.image_size_px
        damaged = f"{images_file(name)} of the cache is damaged"
        try:
            is_copied = self.local_copy_gib and images_file(name) in COPIED
            folder = self._copied_to if is_copied else self.folder
            images_NHW = np.load(folder / images_file(name), mmap_mode="c")
        except DataError:
            raise
        except Exception:  # noqa: BLE001 - a damaged header makes NumPy raise nearly anything
            raise DataError(damaged, got=str(self.folder)) from None
        expected = (len(rows_N), side_px, side_px)
        if images_NHW.shape != expected or images_NHW.dtype != np.uint8 or len(rows_N) != self.info.num_images[name]:
            raise DataError(damaged, got=images_NHW.shape, allowed=f"uint8 {expected}")
        return SplitData(
            images_NHW=torch.from_numpy(images_NHW),
            zones_NZ=torch.from_numpy(rows_N["zones"].astype(np.int64)),
            patients_N=torch.from_numpy(rows_N["patient_index"].astype(np.int64)),
            pseudonyms=tuple(rows_N["image"].astype(str).tolist()),
            normalisation=self.info.normalisation,
        )
