"""How long a trial takes with the cache, compared with a plain PyTorch loop that decodes every image in every epoch.

Run: `python -m benchmarks.trial_time [--labels TABLE --images FOLDER] [--arch NAME …] [--image-size PX] [--epochs N]
[--rounds N]`; without a table, phantoms are drawn. Both train the same model on the same images with the same batched
augmentation, loss and optimizer, in turn, in one process; only where the pixels come from differs: the peer has a
`DataLoader` whose workers read files with Pillow (DICOM and NIfTI with the package's own reader).
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.figures import interleaved, machine, spread
from csi_job.cache.build import build_cache
from csi_job.cache.dataset import Cache
from csi_job.cache.settings import CacheSettings
from csi_job.final_model.seeds import SeedHooks
from csi_job.phantoms.phantom import write_phantoms
from csi_job.radiographs.read import find_images, read_radiograph
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.split import split_patients
from csi_job.radiographs.table import read_table
from csi_job.trial.augment import augment_batch
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.inference import to_input
from csi_job.trial.loss import CsiLoss
from csi_job.trial.memory import choose_device
from csi_job.trial.model import build_model
from csi_job.trial.settings import TrialSettings
from csi_job.trial.train import train_model
from csi_job.trial.trainer import make_optimizer

NUM_PHANTOMS = 120
MAX_SIDE_PX = 20_000
PICTURES = {".png", ".jpg", ".jpeg"}
SPLITS = ("train", "validation")
SETTINGS = TrialSettings()


class Files(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Decodes an image whenever it is asked for."""

    def __init__(self, paths: Sequence[Path], zones_NZ: np.ndarray, side_px: int) -> None:
        self.paths, self.zones_NZ, self.side_px = paths, zones_NZ, side_px

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the uint8 pixels of an image and its zones."""
        path, size = self.paths[index], (self.side_px, self.side_px)
        if path.suffix.lower() in PICTURES:
            with Image.open(path) as image:
                image_HW = np.array(image.convert("L").resize(size, Image.Resampling.BILINEAR))
        else:
            image_HW = read_radiograph(path, self.side_px, max_image_side_px=MAX_SIDE_PX)
        return torch.from_numpy(image_HW), torch.from_numpy(self.zones_NZ[index].astype(np.int64))


@dataclass(frozen=True)
class Peer:
    """The plain loop: files, their loaders, and one training over them."""

    files: dict[str, Files]
    num_workers: int

    def loader(self, name: str, batch_size: int) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        """Return the loader of a split."""
        options = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        is_train = name == "train"
        return DataLoader(self.files[name], batch_size, shuffle=is_train, drop_last=False, **options)

    def trial(self, params: Hyperparameters, num_epochs: int) -> None:
        """Train and validate for a number of epochs."""
        device = choose_device(SETTINGS)
        torch.manual_seed(0)
        generator = torch.Generator(device).manual_seed(0)
        model = build_model(params.model_arch).to(device=device, memory_format=torch.channels_last)
        optimizer, loss = make_optimizer(model, params), CsiLoss(params.unknown_weight).to(device)
        train, validation = (self.loader(name, params.batch_size) for name in SPLITS)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        for _ in range(num_epochs):
            model.train()
            for image_BHW, zones_BZ in train:
                images = augment_batch(image_BHW.to(device), zones_BZ.to(device), SETTINGS.augment, generator)
                optimizer.zero_grad(set_to_none=True)
                with autocast:
                    logits_BZK = model(to_input(images[0], "medical").contiguous(memory_format=torch.channels_last))
                loss(logits_BZK, images[1]).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad(), autocast:
                for image_BHW, _ in validation:
                    model(to_input(image_BHW.to(device), "medical"))
        if device.type == "cuda":
            torch.cuda.synchronize()

    def supply(self, num_epochs: int) -> None:
        """Decode everything for a number of epochs, with no model."""
        loaders = [self.loader(name, 32) for name in SPLITS]
        for _ in range(num_epochs):
            for loader in loaders:
                for _batch in loader:
                    pass


def main() -> None:
    """Print the table."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as temporary:
        radiographs = RadiographsSettings(labels=arguments.labels, images=arguments.images)
        if arguments.labels is None:
            data = Path(temporary) / "data"
            write_phantoms(data, NUM_PHANTOMS, seed=1)
            radiographs = RadiographsSettings(labels=data / "labels.csv", images=data / "images")
        started = time.perf_counter()
        cache = build_cache(radiographs, CacheSettings(image_size_px=arguments.image_size), Path(temporary))
        built_s = time.perf_counter() - started
        peer = Peer(peer_files(radiographs, arguments.image_size), arguments.num_workers)
        print_setting(arguments, peer, built_s)
        print_table(arguments, cache, peer, built_s)


def print_setting(arguments: argparse.Namespace, peer: Peer, built_s: float) -> None:
    """Print what is measured, and on what."""
    num_images = ", ".join(f"{len(files)} {name} images" for name, files in peer.files.items())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    print(machine("torch", "pillow") + gpu)
    print(f"{num_images} of {arguments.image_size} px; {arguments.epochs} epochs per trial; {arguments.rounds} rounds")
    print(f"peer: {arguments.num_workers} workers; building the cache took {built_s:.1f} s, once for all trials\n")


def print_table(arguments: argparse.Namespace, cache: Path, peer: Peer, built_s: float) -> None:
    """Print a row for each architecture, and one for the pixels alone, which is what a fast device waits for."""
    print(f"{'median [quartiles]':<20}{'with the cache, s':>22}{'decoding, s':>22}{'time saved':>22}  cache pays after")
    for arch in arguments.arch:
        params = Hyperparameters(model_arch=arch, batch_size=16)
        cached, plain = paired(
            lambda params=params: cached_trial(cache, params, arguments.epochs),
            lambda params=params: peer.trial(params, arguments.epochs),
            arguments.rounds,
        )
        print_row(f"trial, {arch}", cached, plain, built_s)
    cached, plain = paired(
        lambda: cached_supply(cache, arguments.epochs), lambda: peer.supply(arguments.epochs), arguments.rounds
    )
    print_row("pixels alone", cached, plain, built_s)


def parse() -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="label table; default: phantoms")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument("--arch", nargs="+", default=["Custom_1", "resnet18"], help="architectures to train")
    parser.add_argument("--image-size", type=int, default=128, help="side in pixels")
    parser.add_argument("--epochs", type=int, default=3, help="epochs per trial")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements")
    parser.add_argument("--num-workers", type=int, default=os.cpu_count() or 1, help="decoding processes of the peer")
    return parser.parse_args()


def peer_files(radiographs: RadiographsSettings, side_px: int) -> dict[str, Files]:
    """Return the files of the same splits as the cache's."""
    assert radiographs.labels is not None
    assert radiographs.images is not None
    table = read_table(radiographs.labels, radiographs)
    paths = find_images(radiographs.images, table.file_ids, table.rows)
    split_N = split_patients(table, radiographs.split)
    chosen = {name: np.flatnonzero(split_N == index) for index, name in enumerate(SPLITS)}
    return {name: Files([Path(paths[i]) for i in rows], table.zones_NZ[rows], side_px) for name, rows in chosen.items()}


def cached_trial(cache: Path, params: Hyperparameters, num_epochs: int) -> None:
    """Train from the cache as a trial of a study does, without checkpoints, which the peer has none of."""
    opened = Cache.open(cache)
    hooks = SeedHooks(lambda: None, lambda _: None)
    train_model(opened.train, opened.validation, params, SETTINGS, max_epochs=num_epochs, seed=0, hooks=hooks)


def cached_supply(cache: Path, num_epochs: int) -> None:
    """Read every image from the cache for a number of epochs, in batches of random order."""
    for _ in range(num_epochs):
        for name in SPLITS:
            split = Cache.open(cache).split(name)
            for index_B in torch.randperm(len(split)).split(32):
                split.images_NHW[index_B].clone()


def paired(ours: Callable[[], None], peer: Callable[[], None], rounds: int) -> tuple[list[float], list[float]]:
    """Time both in turn; a first round, which warms up files and libraries, is not counted."""
    times = interleaved({"ours": ours, "peer": peer}, rounds + 1)
    return times["ours"][1:], times["peer"][1:]


def print_row(name: str, cached: list[float], plain: list[float], built_s: float) -> None:
    """Print median and quartiles, and after how many trials the build has paid for itself."""
    saved = [1 - ours / theirs for ours, theirs in zip(cached, plain, strict=True)]
    gained_s = statistics.median(plain) - statistics.median(cached)
    pays = f"{built_s / gained_s:.1f} trials" if gained_s > 0 else "never"
    print(f"{name:<20}{spread(cached):>22}{spread(plain):>22}{spread([100 * s for s in saved], ' %'):>22}  {pays}")


if __name__ == "__main__":
    main()
