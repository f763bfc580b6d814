"""Benchmarks that need a GPU run to their end without one, so that they work where there is one."""

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
