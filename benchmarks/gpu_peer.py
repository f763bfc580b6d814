"""The peer of the GPU benchmark: timm's training recipe (`train.py --amp --channels-last`) on a constant batch.

Nothing is fetched or augmented for it; where timm is not installed, or has no such network, this package's network is
trained by the same recipe.
"""

import torch
from torch import nn

from csi_job.trial.model import build_model

TIMM_NAMES = {"ResNet50": "resnet50", "CheXNet": "densenet121"}
NUM_OUTPUTS = 30


class Peer:
    """A network trained on one batch: fp16 with loss scaling, AdamW, launched kernel by kernel."""

    def __init__(self, arch: str, batch_size: int, side_px: int, device: torch.device) -> None:
        self.device = device
        self.name, network = peer_network(arch)
        self.network = network.to(device=device, memory_format=torch.channels_last).train()
        self.optimizer = peer_optimizer(self.network)
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        self.loss = nn.CrossEntropyLoss()
        image_BCHW = torch.randn(batch_size, 1, side_px, side_px, device=device)
        self.image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        self.zones_BZ = torch.randint(0, 5, (batch_size, 6), device=device)

    def train(self, num_steps: int) -> None:
        """Take some steps, and wait for them."""
        torch.backends.cudnn.benchmark = True  # as in timm's train.py
        try:
            self._train(num_steps)
        finally:
            torch.backends.cudnn.benchmark = False

    def _train(self, num_steps: int) -> None:
        for _ in range(num_steps):
            with torch.autocast(self.device.type, torch.float16, enabled=self.scaler.is_enabled()):
                logits_BZK = self.network(self.image_BCHW).reshape(-1, 6, 5)
                loss = self.loss(logits_BZK.flatten(0, 1), self.zones_BZ.flatten())
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
        loss.item()


def peer_network(arch: str) -> tuple[str, nn.Module]:
    """Return what the network is, and timm's own where it has one."""
    try:
        import timm
    except ImportError:
        return "this package's network", build_model(arch)
    if arch not in TIMM_NAMES:
        return "this package's network", build_model(arch)
    name = TIMM_NAMES[arch]
    return f"timm {timm.__version__} {name}", timm.create_model(name, in_chans=1, num_classes=NUM_OUTPUTS)


def peer_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW as timm makes it."""
    try:
        from timm.optim import create_optimizer_v2
    except ImportError:
        return torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-3, weight_decay=0.01)
    return optimizer
