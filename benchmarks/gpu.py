"""What a GPU trains per second, compared with timm's recipe, and what the rest of an epoch costs.

Run: `make bench-gpu`, or `python -m benchmarks.gpu [--arch NAME …] [--batch-size N] [--image-size PX] [--rounds N]
[--no-compile]`. It takes a few minutes on whatever GPU it finds. All variants run in one process, in turn, after a
warm-up; a round is a training epoch of half a second or less, and ratios are those of the same round. Only what
`trial.compile: auto` may compile is compiled.
"""

import argparse
import functools
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import TypeVar

import torch

from benchmarks.figures import interleaved, machine, spread
from benchmarks.gpu_peer import Peer
from csi_job.cache.dataset import SplitData
from csi_job.final_model.seeds import SeedHooks
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.settings import TrialSettings
from csi_job.trial.train import train_model
from csi_job.trial.trainer import COMPILED_FROM, Trainer

ROUND_S = 0.5
NUM_EPOCHS = 40  # of the trainings with and without checkpoints, which are written on a clock
VALIDATION_SHARE = 15 / 70  # images per training image, as radiographs are split
GOALS = {"Custom_1": 3.0, "ResNet50": 1.3, "CheXNet": 1.8}
LEFT_OUT = """Left out: decoding and the cache (the images are random, and in memory before), start-up, the first steps,
the study's database. csi-job fetches each batch from the data on the GPU and augments it; the peer trains on one
constant batch, with no input and no augmentation."""

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """What is trained."""

    batch_size: int
    side_px: int
    device: torch.device


class Ours:
    """csi-job's trainer on random images."""

    def __init__(self, arch: str, size: Size, num_steps: int, settings: TrialSettings) -> None:
        self.trainer = Trainer(*random_splits(num_steps, size), recipe(arch, size), settings, size.device)

    def train(self) -> None:
        """Train for an epoch, and wait for it."""
        self.trainer.train_epoch(0, lambda _step, _num_steps: 1e-3, lambda: None)

    def train_on_a_constant_batch(self) -> None:
        """Train for an epoch, fetching nothing."""
        trainer, place = self.trainer, slice(self.trainer.params.batch_size)
        batch = trainer.train_data.images_NHW[place], trainer.train_data.zones_NZ[place]
        trainer._fetch = lambda _, indices: (batch for _ in indices)  # type: ignore[method-assign]
        try:
            self.train()
        finally:
            del trainer._fetch

    def train_from_the_host(self) -> None:
        """Train for an epoch on images that do not fit the GPU."""
        trainer, resident = self.trainer, self.trainer.train_data
        trainer.train_data = trainer.on_host[0]
        try:
            self.train()
        finally:
            trainer.train_data = resident

    def validate(self) -> None:
        """Validate, and wait for it."""
        self.trainer.validate(lambda: None)


def main() -> None:
    """Print the tables."""
    arguments = parse()
    if not torch.cuda.is_available() and not arguments.cpu:
        raise SystemExit("no GPU was found; --cpu tries the benchmark itself, with figures that say nothing")
    device = torch.device("cpu") if arguments.cpu else torch.device("cuda", torch.cuda.current_device())
    size = Size(arguments.batch_size, arguments.image_size, device)
    if arguments.compiling:
        compiled = functools.partial(Ours, arguments.arch[0], size, 2, TrialSettings(compile=True))
        print(seconds(lambda: warm(compiled()), device))
        return
    print(machine("torch"))
    print(gpu(device))
    print(f"batches of {size.batch_size} images of {size.side_px} px, {arguments.rounds} rounds; median [quartiles]")
    print(LEFT_OUT, flush=True)
    for arch in arguments.arch:
        started = time.perf_counter()
        for line in measure(arch, size, arguments.rounds, with_compiled=arguments.compile and arch in COMPILED_FROM):
            print(line, flush=True)
        print(f"  (took {time.perf_counter() - started:.0f} s)", flush=True)


def measure(arch: str, size: Size, rounds: int, *, with_compiled: bool) -> Iterable[str]:
    """Yield the lines of an architecture."""
    peer, peer_gib = with_memory(lambda: warm_peer(arch, size), size.device)
    step_s = seconds(lambda: peer.train(3), size.device) / 3
    num_steps = max(2, round(ROUND_S / step_s)) if size.device.type == "cuda" else 2
    graphs, launches = (TrialSettings(compile=False, cuda_graphs=is_on) for is_on in (True, False))
    ours, ours_gib = with_memory(lambda: warm(Ours(arch, size, num_steps, graphs)), size.device)
    plain, plain_gib = with_memory(lambda: warm(Ours(arch, size, num_steps, launches)), size.device)
    variants = {
        "ours": ours.train,
        "constant": ours.train_on_a_constant_batch,
        "host": ours.train_from_the_host,
        "plain": plain.train,
        "peer": lambda: peer.train(num_steps),
        "validation": ours.validate,
    }
    if with_compiled:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
            first_s, second_s = (in_new_process(arch, size) for _ in range(2))
            variants["compiled"] = warm(Ours(arch, size, num_steps, TrialSettings(compile=True))).train
    times = interleaved(variants, rounds, lambda variant: seconds(variant, size.device))
    rates = {name: [num_steps * size.batch_size / each for each in times[name]] for name in times}
    yield f"\n{arch}, {ours.trainer.gflops:.1f} GFLOPs per image; peer: {peer.name}"
    yield f"  training, images/s                 {spread(rates['ours'])}"
    yield f"  without CUDA graphs                {spread(rates['plain'])}"
    yield f"  peer, timm's --amp --channels-last {spread(rates['peer'])}"
    yield f"  times the peer (goal {GOALS.get(arch, 1.0)})           {spread(ratios(times['peer'], times['ours']))}"
    yield f"  times without graphs               {spread(ratios(times['plain'], times['ours']))}"
    yield f"  of a constant batch (goal 0.99)    {spread(ratios(times['constant'], times['ours']))}"
    yield f"  from host memory, of resident data {spread(ratios(times['ours'], times['host']))}"
    if with_compiled:
        yield f"  with trial.compile                 {spread(rates['compiled'])}"
        yield f"  times without compiling            {spread(ratios(times['ours'], times['compiled']))}"
        yield f"  first epochs of a new process, s   {first_s:.1f}, with the code that another compiled {second_s:.1f}"
    epoch_s = [train + validation for train, validation in zip(times["ours"], times["validation"], strict=True)]
    shares = [100 * share for share in ratios(times["validation"], epoch_s)]
    yield f"  validation, of an epoch (goal 5 %) {spread(shares, ' %')}"
    yield f"  memory reserved, GiB               {ours_gib:.2f}, without graphs {plain_gib:.2f}, peer {peer_gib:.2f}"
    yield f"  checkpoints add (goal 2 %)         {checkpoint_cost(arch, num_steps, size)}"


def in_new_process(arch: str, size: Size) -> float:
    """Return the seconds until a new process has trained and validated with a compiled network, without its imports."""
    shape = ("--batch-size", str(size.batch_size), "--image-size", str(size.side_px))
    command = (sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--compiling", "--arch", arch, *shape)
    on_cpu = ("--cpu",) if size.device.type == "cpu" else ()
    return float(subprocess.run([*command, *on_cpu], check=True, stdout=subprocess.PIPE, text=True).stdout)


def warm_peer(arch: str, size: Size) -> Peer:
    """Return the peer after its first steps."""
    peer = Peer(arch, size.batch_size, size.side_px, size.device)
    peer.train(3)
    return peer


def warm(ours: Ours) -> Ours:
    """Return the trainer after two epochs, in which it records its graphs."""
    for _ in range(2):
        ours.train()
        ours.validate()
    ours.validate()
    return ours


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return how long a function takes, with all that it launches."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def with_memory(function: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return a function's result, and the GiB that it reserved at most."""
    gc.collect()
    if device.type != "cuda":
        return function(), 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    result = function()
    return result, (torch.cuda.max_memory_reserved(device) - before) / 2**30


def recipe(arch: str, size: Size) -> Hyperparameters:
    """Return what is trained, by the peer's optimizer."""
    return Hyperparameters(
        model_arch=arch, batch_size=size.batch_size, optimizer="adamw", weight_decay=0.01, patience=NUM_EPOCHS
    )


def checkpoint_cost(arch: str, num_steps: int, size: Size) -> str:
    """Return what checkpoints add to the mean epoch, in trainings with and without them, in turn."""
    splits, params = random_splits(num_steps, size), recipe(arch, size)
    seconds_of: dict[bool, list[float]] = {True: [], False: []}
    ends: list[float] = []
    hooks = SeedHooks(lambda: None, lambda _: ends.append(time.perf_counter()))
    with tempfile.TemporaryDirectory() as folder:
        for number, is_on in enumerate((True, False, False, True)):
            to = Path(folder, str(number)) if is_on else None
            train_model(
                *splits, params, TrialSettings(), max_epochs=NUM_EPOCHS, seed=0, hooks=hooks, checkpoint_folder=to
            )
            seconds_of[is_on] += [end - start for start, end in pairwise(ends[2:])]  # from the third on: warm
            ends.clear()
    added = 100 * (mean(seconds_of[True]) / mean(seconds_of[False]) - 1)
    return f"{added:.1f} % of the mean, epochs {spread(seconds_of[True], ' s')}, without {spread(seconds_of[False])}"


def random_splits(num_steps: int, size: Size) -> tuple[SplitData, SplitData]:
    """Return a training split of this many batches, and a validation split."""
    num_train = num_steps * size.batch_size
    return random_split(num_train, size), random_split(max(1, round(num_train * VALIDATION_SHARE)), size)


def random_split(num_images: int, size: Size) -> SplitData:
    """Return random images with random zones."""
    generator = torch.Generator().manual_seed(num_images)
    return SplitData(
        images_NHW=torch.randint(
            0, 256, (num_images, size.side_px, size.side_px), dtype=torch.uint8, generator=generator
        ),
        zones_NZ=torch.randint(0, 5, (num_images, 6), generator=generator),
        patients_N=torch.arange(num_images),
        pseudonyms=tuple(map(str, range(num_images))),
        normalisation="medical",
    )


def gpu(device: torch.device) -> str:
    """Return the line that says which GPU it is."""
    if device.type != "cuda":
        return "no GPU"
    facts = torch.cuda.get_device_properties(device)
    return (
        f"{facts.name}, compute capability {facts.major}.{facts.minor}, {facts.total_memory / 2**30:.0f} GiB, "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )


def parse() -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=list(GOALS), help="architectures to train")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch")
    parser.add_argument("--image-size", type=int, default=224, help="side in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each variant")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="also compile")
    parser.add_argument("--compiling", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cpu", action="store_true", help="try the benchmark itself without a GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
