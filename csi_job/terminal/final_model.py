"""The candidates and the models that were kept, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from csi_job.files import read_json
from csi_job.final_model.hyperparams import rename_old_keys
from csi_job.final_model.train import FinalModel

MISSING = "-"


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
    table = _table("Candidates: validation F1 in the search and over new seeds")
    for heading in ("trial", "search", "mean", "SD", "GFLOPs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("hyperparameters", overflow="fold")
    for entry in chosen["candidates"]:
        numbers = [_number(entry[name]) for name in ("search_value", "mean", "std")]
        params = ", ".join(f"{name} {_value(value)}" for name, value in entry["params"].items())
        trial = MISSING if entry["trial"] is None else str(entry["trial"])
        gflops = MISSING if entry["gflops"] is None else f"{entry['gflops']:.2f}"
        style = "bold" if entry["winner"] else ""
        table.add_row(trial, *numbers, gflops, entry["reason"] or params, style=style)
    return table


def _models(final: FinalModel) -> Table:
    table = _table("Kept: the best seed by validation F1")
    for heading in ("model", "mean", "SD", "seeds", "kept"):
        table.add_column(heading, justify="left" if heading in ("model", "seeds") else "right")
    for card in (final.card, final.baseline_card):
        if card is not None:
            seeds = "  ".join(f"{row['seed']}: {row['val_f1']:.3f}" for row in card["seeds"])
            numbers = _number(card["mean"]), _number(card["std"])
            table.add_row(card["name"], *numbers, seeds, f"seed {card['kept_seed']}")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
