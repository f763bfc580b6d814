"""Benchmarks run to their end at their smallest size, without a GPU too, so that they work where there is one."""

import importlib

import pytest
import torch

from benchmarks import gpu

ROWS = (
    "Custom_1, ",
    "training, images/s",
    "without CUDA graphs",
    "peer, timm's --amp --channels-last",
    "times the peer (goal 3.0)",
    "times without graphs",
    "of a constant batch (goal 0.99)",
    "from host memory, of resident data",
    "validation, of an epoch (goal 5 %)",
    "memory reserved, GiB",
    "checkpoints add (goal 2 %)",
)


def test_the_gpu_benchmark_measures_every_row_of_the_table(monkeypatch):
    monkeypatch.setattr(gpu, "NUM_EPOCHS", 4)
    size = gpu.Size(batch_size=2, side_px=32, device=torch.device("cpu"))
    lines = [line.strip() for line in gpu.measure("Custom_1", size, 1, with_compiled=False)]
    assert len(lines) == len(ROWS)
    for line, row in zip(lines, ROWS, strict=True):
        assert line.startswith(row)


@pytest.mark.parametrize(
    ("name", "arguments", "last"),
    [
        ("study_trial", "--history 30 --round-trip-ms 1 --trials 1 --rounds 2", "statements per trial"),
        ("study_scale", "--sqlite --workers 2 --trials 1 --seconds 0", "pods ask for"),
        ("study_long", "--trials 30 --pruners asha", "a trial, asha"),
        ("trial_time", "--arch Custom_1 --image-size 32 --epochs 1 --rounds 1 --num-workers 0", "pixels alone"),
    ],
    ids=["study_trial", "study_scale", "study_long", "trial_time"],
)
def test_a_benchmark_prints_its_table(phantoms, monkeypatch, capsys, name, arguments, last):
    films = ["--labels", str(phantoms / "labels.csv"), "--images", str(phantoms / "images")]
    monkeypatch.setattr("sys.argv", [name, *arguments.split(), *(films if name == "trial_time" else [])])
    importlib.import_module(f"benchmarks.{name}").main()
    assert last in capsys.readouterr().out
