"""The candidates and the final models as tables."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from csi_job.files import read_json
from csi_job.final_model.hyperparams import rename_old_keys
from csi_job.final_model.train import FinalModel
from csi_job.html import format as fmt
from csi_job.terminal.table import titled_table


def render_final_model(final: FinalModel) -> RenderableType:
    """Return the candidates over their seeds, the two models, and where the files are."""
    chosen = rename_old_keys(read_json(final.optimized_params) or {})
    parts: list[RenderableType] = []
    if len(chosen.get("candidates", [])) > 1:
        parts += [_candidates(chosen), f"Rule: {chosen['rule']}."]
    parts += [_models(final), f"Model: {final.path}", f"Card:  {final.path.with_suffix('.md')}"]
    if not final.is_new:
        parts.append("Everything is up to date; nothing was trained.")
    return Group(*parts)


def _candidates(chosen: Mapping[str, Any]) -> Table:
    headings = ("trial", "search", "mean", "SD", "GFLOPs", "hyperparameters")
    title = "Candidates: validation F1 in the search and over new seeds"
    table = titled_table(title, *headings, left=("hyperparameters",))
    for entry in chosen["candidates"]:
        numbers = [fmt.score(entry[name]) for name in ("search_value", "mean", "std")]
        gflops = fmt.MISSING if entry["gflops"] is None else f"{entry['gflops']:.2f}"
        text = entry["reason"] or fmt.parameters(entry["params"])
        table.add_row(fmt.value(entry["trial"]), *numbers, gflops, text, style="bold" if entry["winner"] else "")
    return table


def _models(final: FinalModel) -> Table:
    title = "Kept: the best seed by validation F1"
    table = titled_table(title, "model", "mean", "SD", "seeds", "kept", left=("model", "seeds"))
    for card in (final.card, final.baseline_card):
        if card is not None:
            seeds = "  ".join(f"{row['seed']}: {row['val_f1']:.3f}" for row in card["seeds"])
            table.add_row(
                card["name"], fmt.score(card["mean"]), fmt.score(card["std"]), seeds, f"seed {card['kept_seed']}"
            )
    return table
