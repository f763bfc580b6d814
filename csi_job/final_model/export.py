"""The model's files: weights as safetensors and `.pth`, the card as JSON, Markdown and a page.

A kill at any moment never leaves new weights beside an old card: cards are removed first and written last, weights are
replaced atomically, and the card holds the digest of each file it describes. The safetensors carry the card in their
metadata too, so that one file is enough to use the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from csi_job.errors import CsiJobError, explain_os_errors
from csi_job.evaluation.evaluate import Evaluation
from csi_job.evaluation.model_file import FORMAT
from csi_job.files import digest_file, json_text, make_folder, read_json, replacing, write_atomic
from csi_job.final_model.card import card_html, card_markdown, card_metrics
from csi_job.final_model.hyperparams import rename_old_keys
from csi_job.html.links import page_links
from csi_job.work_folder import WorkFolder


def write_model(path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any], *, with_pth: bool) -> dict[str, Any]:
    """Write a model as `.safetensors`, with its card next to it; return the card with the digests of the files.

    `with_pth` also writes a PyTorch state dict, for software that does not read safetensors.

    Raises:
        CsiJobError: the folder cannot be written.

    """
    try:
        make_folder(path.parent)
        _remove_companions(path)
        return _write_card(path, {**card, "files": _write_weights(path, state, card, with_pth=with_pth)})
    except (OSError, RuntimeError) as error:  # torch reports a failed write of its own as RuntimeError
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["failed"])[0]
        what = f"the model cannot be written ({reason})"
        raise CsiJobError(what, got=str(path), hint="free space and run the same command again") from None


def remove_model(path: Path) -> None:
    """Remove a model and the files that describe it; raise `CsiJobError` if that is not allowed."""
    with explain_os_errors("the model cannot be removed", path):
        _remove_companions(path)
        path.unlink(missing_ok=True)


def read_valid_card(path: Path) -> dict[str, Any] | None:
    """Return the card beside a model if every file it lists is there unchanged, and its Markdown exists."""
    card = read_json(path.with_suffix(".json")) or {}
    try:
        files = card["files"]
        unchanged = all(digest_file(path.with_name(name)) == entry["sha256"] for name, entry in files.items())
    except (OSError, KeyError, TypeError, AttributeError):
        return None
    is_valid = unchanged and path.name in files and path.with_suffix(".md").is_file()
    return rename_old_keys(card) if is_valid else None


def record_test_metrics(path: Path, evaluation: Evaluation) -> bool:
    """Add the test metrics to a model's card if the evaluation covers the model's own test set; return whether it did.

    Raises:
        CsiJobError: the card cannot be written.

    """
    card = read_valid_card(path.with_suffix(".safetensors"))
    if card is None or path.name not in card["files"]:
        return False
    if evaluation.split != "test" or card["data"]["cache"] != evaluation.cache:
        return False
    with explain_os_errors("the model card cannot be written", path.with_suffix(".json")):
        _write_card(path, {**card, "test": card_metrics(evaluation)})
    return True


def _remove_companions(path: Path) -> None:
    """Remove the cards and the state dict, which describe the old weights."""
    for suffix in (".json", ".html", ".md", ".pth"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _write_weights(
    path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any], *, with_pth: bool
) -> dict[str, dict[str, Any]]:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"format": FORMAT, "card": json.dumps(card, ensure_ascii=False, allow_nan=False)}
    with replacing(path) as temporary:
        temporary.write_bytes(save(plain, metadata))
    written = [path]
    if with_pth:
        with replacing(path.with_suffix(".pth")) as temporary:
            torch.save(plain, temporary)
        written.append(path.with_suffix(".pth"))
    return {file.name: {"sha256": digest_file(file), "num_bytes": file.stat().st_size} for file in written}


def _write_card(path: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write the page and the Markdown, then the JSON, which is what a later run looks for."""
    page = path.with_suffix(".html")
    write_atomic(page, card_html(card, page_links(WorkFolder(path.parent.parent), str(card["study"]), page)))
    write_atomic(path.with_suffix(".md"), card_markdown(card))
    write_atomic(path.with_suffix(".json"), json_text(card))
    return card
