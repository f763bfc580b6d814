"""How long `csi-job predict` takes for a folder, compared with a minimal loop with the same decoder and network.

Run: `python -m benchmarks.predict [--images FOLDER] [--arch NAME] [--repeats N]`. The peer is what a short script does:
torch's DataLoader with one process per core decodes, the network computes (in bf16 on a GPU) and a table is written.
Each is a separate process, start-up included, and they take turns. On a busy machine compare the processor seconds.
"""

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.figures import machine, measure, spread
from csi_job.evaluation.model_file import FORMAT
from csi_job.machine import num_cores
from csi_job.phantoms.phantom import write_phantoms
from csi_job.radiographs.read import read_radiograph
from csi_job.trial.model import build_model

SIDE_PX, BATCH_SIZE, NUM_FILMS = 224, 64, 500


def main() -> None:
    """Print seconds of both, and their ratios pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help=f"a folder of readable images  [default: {NUM_FILMS} phantoms]")
    parser.add_argument("--arch", default="ResNet50")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        minimal_loop(arguments.arch, arguments.peer, arguments.images)
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    with tempfile.TemporaryDirectory() as temporary:
        model, films = Path(temporary, "model.safetensors"), arguments.images
        if films is None:
            write_phantoms(Path(temporary), NUM_FILMS, seed=0)
            films = Path(temporary, "images")
        write_model(model, arguments.arch)
        print(f"{machine('torch')}, {device}; {arguments.arch}, {len(list(films.iterdir()))} films to {SIDE_PX} px")
        ours = ["-c", "from csi_job.cli import main; main()", "predict", str(films), "--model-path", str(model)]
        peer = ["-m", "benchmarks.predict", "--peer", str(model), "--images", str(films), "--arch", arguments.arch]
        pairs = [(measure(ours), measure(peer)) for _ in range(arguments.repeats)]
    for row, what in enumerate(("wall clock", "processor")):
        seconds = [[pair[place][row] for pair in pairs] for place in range(2)]
        ratios = [a / b for a, b in zip(*seconds, strict=True)]
        print(f"{what}: csi-job {spread(seconds[0], ' s')}, minimal loop {spread(seconds[1], ' s')}: {spread(ratios)}")


def write_model(path: Path, arch: str) -> None:
    """Write an untrained model."""
    card = {"architecture": arch, "image_size_px": SIDE_PX, "normalisation": "medical"}
    weights = {name: tensor.contiguous() for name, tensor in build_model(arch).state_dict().items()}
    save_file(weights, path, metadata={"format": FORMAT, "card": json.dumps(card)})


class Films(torch.utils.data.Dataset[torch.Tensor]):
    """Decodes with csi-job's decoder, in the DataLoader's processes."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        """Return the number of films."""
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return a film's pixels."""
        return torch.from_numpy(read_radiograph(self.paths[index], SIDE_PX, max_image_side_px=20_000))


@torch.inference_mode()
def minimal_loop(arch: str, weights: Path, films: Path) -> None:
    """Print the probabilities of each film."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(arch)
    model.load_state_dict(load_file(weights))
    model.to(device).eval()
    paths, table = sorted(films.iterdir()), csv.writer(sys.stdout)
    batches = torch.utils.data.DataLoader(Films(paths), BATCH_SIZE, num_workers=num_cores())
    names = iter(paths)
    for image_BHW in batches:
        image_BCHW = image_BHW[:, None].to(device).float().div_(127.5).sub_(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            probabilities_BZK = model(image_BCHW).float().softmax(dim=2).cpu()
        table.writerows([next(names).name, *row.tolist()] for row in probabilities_BZK.flatten(1))


if __name__ == "__main__":
    main()
