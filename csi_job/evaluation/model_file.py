"""Load a model file: `.safetensors` with the card in its metadata, or weights that PyTorch saved.

Nothing in a model file is ever executed: safetensors cannot contain code, and other files are read with PyTorch's
weights-only unpickler, which rejects everything but tensors.
"""

import hashlib
import json
import logging
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from csi_job.cache.settings import CacheSettings
from csi_job.errors import ConfigurationError, ModelFileError, explain_os_errors
from csi_job.evaluation.csi import FloatArray
from csi_job.files import is_file
from csi_job.trial.inference import Precision, choose_precision, predict_logits
from csi_job.trial.model import model_to_load
from csi_job.trial.pretrained import as_ours, find_weights, refuse_without_weights

FORMAT = "csi-job-model"  # the value of `format` in the metadata of our safetensors
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pth.tar")
HINT = (
    "use the .safetensors file that train-optimized wrote, or say what the file contains, e.g. "
    "--model-arch ResNet50 --image-size 224 --normalisation medical"
)

logger = logging.getLogger(__name__)
StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LoadedModel:
    """A model that predicts as in training: on a device, channels last, in the precision of `trial.precision`.

    `card` is empty if the file has none.
    """

    name: str
    model: nn.Module
    architecture: str
    image_size_px: int
    normalisation: str
    device: torch.device
    card: dict[str, Any]
    precision: Literal["auto"] | Precision = "auto"

    def __post_init__(self) -> None:
        """Make the model ready."""
        self.model.to(device=self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def warn_of_others(self, **given: object) -> None:
        """Warn of each value given for the model's form that its card overrules."""
        for name, value in given.items():
            if value is not None and value != getattr(self, name):
                values = {"model": self.name, "form": name, "card": getattr(self, name), "given": value}
                logger.warning("the card of %(model)s says %(form)s %(card)s: that is used, not %(given)s", values)


def load_model(
    path: Path,
    device: torch.device,
    *,
    architecture: str | None = None,
    image_size_px: int | None = None,
    normalisation: str | None = None,
    precision: Literal["auto"] | Precision = "auto",
) -> LoadedModel:
    """Read `.safetensors` (with metadata) or weights that PyTorch saved (a card `<stem>.json` beside it is read too).

    The weights may be within a training checkpoint, under the prefixes of wrappers. Architecture, image size and
    normalisation are for a file without a card; a card takes precedence. With `auto`, the precision is the one that the
    card names, if any, so that every command gives the same answers.

    Raises:
        ModelFileError: the file is missing, corrupt or unsafe, or its weights do not fit the architecture.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise ModelFileError("unknown type of model file", got=path.name, allowed=SUFFIXES)
    if not is_file(path):
        hint = "run `csi-job train-optimized` first, or name another file"
        raise ModelFileError("there is no such model file", got=str(path), hint=hint)
    with explain_os_errors("the model file cannot be read", path, kind=ModelFileError):
        refuse_without_weights(path, "the model file", ModelFileError)
        state, card = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pth(path)
    architecture = card.get("architecture") or architecture
    if architecture is None:
        raise ModelFileError("the model file has no card that names its architecture", got=str(path), hint=HINT)
    model = _build(str(architecture), state, path)
    form = {"image_size_px": image_size_px, "normalisation": normalisation}
    form |= {name: card[name] for name in form if name in card}
    if missing := [name for name, value in form.items() if value is None]:
        raise ModelFileError(f"{path.name} has no card with its {' and '.join(missing)}", hint=HINT)
    try:
        checked = CacheSettings.model_validate(form)
    except ValueError:
        raise ModelFileError("the model card's image size or normalisation is not allowed", got=form) from None
    return LoadedModel(
        name=path.name,
        model=model,
        architecture=str(architecture),
        image_size_px=checked.image_size_px,
        normalisation=checked.normalisation,
        device=device,
        card=dict(card),
        precision=_precision_of_training(card) if precision == "auto" else precision,
    )


def _precision_of_training(card: Mapping[str, Any]) -> Literal["auto"] | Precision:
    training = card.get("training")
    named = training.get("precision") if isinstance(training, dict) else None
    return next((precision for precision in get_args(Precision) if precision == named), "auto")


def predict_probabilities(loaded: LoadedModel, images_NHW: torch.Tensor, batch_size: int) -> FloatArray:
    """Return class probabilities [N, 6, 5] for uint8 images; raise `ModelFileError` if they are not finite."""
    form = loaded.normalisation, batch_size, loaded.device
    usual = choose_precision(loaded.precision, loaded.device)
    for precision in dict.fromkeys((usual, "fp32")):  # fp16 overflows above 65,504
        logits_NZK = predict_logits(loaded.model, images_NHW, *form, precision)
        probabilities_NZK = torch.softmax(logits_NZK.double(), dim=2).numpy()
        if np.isfinite(probabilities_NZK).all():
            return np.asarray(probabilities_NZK)
    raise ModelFileError("the model's output is not finite", got=loaded.name, hint="train it again")


def _read_safetensors(path: Path) -> tuple[StateDict, Mapping[str, Any]]:
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError:
        raise ModelFileError("the model file is corrupt or not a safetensors file", got=str(path)) from None
    return state, _parse_card(metadata.get("card", ""), path) if metadata.get("format") == FORMAT else {}


def _read_pth(path: Path) -> tuple[StateDict, Mapping[str, Any]]:
    try:
        # One open file, even if another takes its name meanwhile; warnings are about what is rejected anyway.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            state = find_weights(torch.load(file, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError:
        what = "the model file contains more than weights, or is not a PyTorch file; nothing in it was executed"
        raise ModelFileError(what, got=str(path), hint="save it with torch.save(model.state_dict(), …)") from None
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - corrupt bytes make the unpickler raise nearly anything
        raise ModelFileError("the model file is corrupt or not a PyTorch file", got=str(path)) from None
    if not state:
        what = "the model file contains no state dict (names and tensors), or several"
        raise ModelFileError(what, got=str(path), hint="save it with torch.save(model.state_dict(), …)")
    return state, _card_beside(path, digest)


def _card_beside(path: Path, digest: str) -> Mapping[str, Any]:
    """Return the card `<stem>.json` if it holds the digest of the weights that were read."""
    card_file = path.with_suffix(".json")
    if not is_file(card_file):
        return {}
    card = _parse_card(card_file.read_text(encoding="utf-8", errors="replace"), card_file)
    try:
        if card["files"][path.name]["sha256"] == digest:
            return card
    except (KeyError, TypeError):
        pass
    logger.warning("%s describes another file than %s; ignoring it", card_file.name, path.name)
    return {}


def _parse_card(text: str, path: Path) -> dict[str, Any]:
    try:
        card = json.loads(text)
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict):
        raise ModelFileError("the model card is not a JSON object", got=str(path), hint="train the model again")
    return card


def _build(architecture: str, state: StateDict, path: Path) -> nn.Module:
    """Build the network and load its weights; exactly these must be present, of the right shapes, and finite."""
    try:
        model = model_to_load(architecture)
    except ConfigurationError as error:
        raise ModelFileError(f"{path}: {error}") from None
    target = model.state_dict()
    counts = {name: tensor for name, tensor in target.items() if name.endswith("num_batches_tracked")}
    state = counts | as_ours(state, target)
    wrong = sorted(target.keys() ^ state.keys())
    try:
        model.load_state_dict(state)
    except RuntimeError:
        reason = f"{len(wrong)} weights are missing or unknown, such as {wrong[0]}" if wrong else "shapes differ"
        raise ModelFileError(f"the weights do not fit {architecture} ({reason})", got=str(path)) from None
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ModelFileError("some weights are not finite", got=str(path), hint="train the model again")
    return model
