"""The model's files: weights as safetensors and `.pth`, the card as JSON, Markdown and a page.

A kill at any moment never leaves new weights beside an old card: cards are removed first and written last, weights are
replaced atomically, and the card holds the digest of each file it describes. A lock per folder keeps two processes from
mixing theirs. The safetensors carry the card in their metadata too, so that one file is enough to use the model.

Each study has its own folder; `publish` makes its files those in `models/`, where other programs look.
"""

import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from csi_job.errors import explain_os_errors
from csi_job.evaluation.evaluate import Evaluation
from csi_job.evaluation.model_file import FORMAT
from csi_job.files import digest_file, is_file, json_text, locked, make_folder, read_json, replacing, write_atomic
from csi_job.final_model.card import card_html, card_markdown, card_metrics
from csi_job.final_model.hyperparams import rename_old_keys
from csi_job.html.links import page_links
from csi_job.work_folder import ModelFolder

_PUBLISHED = ("optimized_model.*", "baseline_model.*", "evaluation/optimized_model*", "evaluation/baseline_model*",
    "evaluation/comparison*", "evaluation/*.js")  # fmt: skip


def write_model(path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any], *, with_pth: bool) -> dict[str, Any]:
    """Write a model as `.safetensors`, with its card next to it; return the card with the digests of the files.

    `with_pth` also writes a PyTorch state dict, for software that does not read safetensors.
    """
    with explain_os_errors("the model cannot be written", path), _locked(path.parent):
        _remove_companions(path)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        metadata = {"format": FORMAT, "card": json.dumps(card, ensure_ascii=False, allow_nan=False)}
        files = {}
        with replacing(path) as temporary:
            temporary.write_bytes(save(plain, metadata))
            files[path.name] = _described(temporary)
        if with_pth:
            torch.save(plain, content := io.BytesIO())  # which would hide why the write of a file failed
            with replacing(path.with_suffix(".pth")) as temporary:
                temporary.write_bytes(content.getvalue())
                files[path.with_suffix(".pth").name] = _described(temporary)
        return _write_card(path, {**card, "files": files})


def remove_model(path: Path) -> None:
    """Remove a model and the files that describe it; raise `CsiJobError` if that is not allowed."""
    with explain_os_errors("the model cannot be removed", path), _locked(path.parent):
        _remove_companions(path)
        path.unlink(missing_ok=True)


def read_valid_card(path: Path) -> dict[str, Any] | None:
    """Return the card beside a model if every file it lists is there unchanged, and its Markdown exists."""
    card = read_json(path.with_suffix(".json")) or {}
    try:
        files = card["files"]
        unchanged = all(digest_file(path.with_name(name)) == entry["sha256"] for name, entry in files.items())
    except (OSError, KeyError, TypeError, AttributeError, ValueError):  # `with_name` takes no path
        return None
    is_valid = unchanged and path.name in files and is_file(path.with_suffix(".md"))
    return rename_old_keys(card) if is_valid else None


def is_same_model(card: Mapping[str, Any] | None, other: Mapping[str, Any]) -> bool:
    """Return whether two cards describe the same weights, whatever else was added to one of them."""
    return card is not None and all(name in card and card[name] == other.get(name) for name in ("request", "created"))


def record_test_metrics(path: Path, evaluation: Evaluation) -> bool:
    """Add the test metrics to a model's card if they are of these weights on their own test set; return whether so."""
    if evaluation.split != "test" or not is_same_model(read_json(path.with_suffix(".json")), evaluation.card):
        return False
    with _locked(path.parent):
        card = read_valid_card(path)
        if card is None or not is_same_model(card, evaluation.card) or card["data"]["cache"] != evaluation.cache:
            return False
        _write_card(path, {**card, "test": card_metrics(evaluation)})
    return True


def publish(source: ModelFolder, target: ModelFolder) -> None:
    """Copy the models of a folder, their evaluations, and last their cards, in place of those of another folder."""
    failed = explain_os_errors("the final model cannot be written", target.path)
    with failed, _locked(source.path), _locked(target.path):
        names = _published(source)
        # Of the same models, what there is stays until it is replaced: a full disk would leave none.
        kept = names if _weights_in(source) == _weights_in(target) else []
        for name in _published(target)[::-1]:
            if name.suffix != ".js" and name not in kept:  # any other page may need the script
                (target.path / name).unlink()
        for name in names:
            make_folder((target.path / name).parent)
            with replacing(target.path / name) as temporary:
                shutil.copyfile(source.path / name, temporary)
                if name.suffix == ".html":  # its links out of the folder start elsewhere
                    way_out = f'href="{os.path.relpath(target.path, source.path)}/'
                    temporary.write_text(temporary.read_text("utf-8").replace(way_out, 'href="'), "utf-8")


def _weights_in(folder: ModelFolder) -> list[Any]:
    """Return the digests that the cards have of the weights."""
    models = (folder.optimized_model, folder.baseline_model)
    return [(read_json(model.with_suffix(".json")) or {}).get("files") for model in models]


def _published(folder: ModelFolder) -> list[Path]:
    """Return the names of the files to publish, cards last."""
    found = [path.relative_to(folder.path) for pattern in _PUBLISHED for path in folder.path.glob(pattern)]
    return sorted(found, key=lambda name: (len(name.parts) == 1, name.suffix == ".json", name))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with locked(make_folder(folder) / ".lock", f"another process is writing models in {folder}; waiting for it"):
        yield


def _remove_companions(path: Path) -> None:
    """Remove the cards and the state dict, which describe the old weights."""
    for suffix in (".json", ".html", ".md", ".pth"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _described(file: Path) -> dict[str, Any]:
    return {"sha256": digest_file(file), "num_bytes": file.stat().st_size}


def _write_card(path: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write the page and the Markdown, then the JSON, which is what a later run looks for."""
    page = path.with_suffix(".html")
    html = card_html(card, page_links(ModelFolder(path.parent), str(card["study"]), page))
    for suffix, text in ((".html", html), (".md", card_markdown(card)), (".json", json_text(card))):
        file = path.with_suffix(suffix)
        with explain_os_errors("the model card cannot be written", file):
            write_atomic(file, text)
    return card
