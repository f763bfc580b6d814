"""The candidates and the final models as tables."""

from rich.console import Group, RenderableType

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
        headings = ("trial", "search", "mean", "SD", "GFLOPs", "hyperparameters")
        title = "Candidates: validation F1 in the search and over new seeds"
        candidates = titled_table(title, *headings, left=("hyperparameters",))
        for entry in chosen["candidates"]:
            numbers = [fmt.score(entry[name]) for name in ("search_value", "mean", "std")]
            gflops = fmt.MISSING if entry["gflops"] is None else f"{entry['gflops']:.2f}"
            cells = (fmt.value(entry["trial"]), *numbers, gflops, entry["reason"] or fmt.parameters(entry["params"]))
            candidates.add_row(*cells, style="bold" if entry["winner"] else "")
        parts += [candidates, f"Rule: {chosen['rule']}."]
    title = "Kept: the best seed by validation F1"
    models = titled_table(title, "model", "mean", "SD", "seeds", "kept", left=("model", "seeds"))
    for card in filter(None, (final.card, final.baseline_card)):
        seeds = "  ".join(f"{row['seed']}: {row['val_f1']:.3f}" for row in card["seeds"])
        scores = fmt.score(card["mean"]), fmt.score(card["std"])
        models.add_row(card["name"], *scores, seeds, f"seed {card['kept_seed']}")
    parts += [models, f"Model: {final.path}", f"Card:  {final.path.with_suffix('.md')}"]
    if not final.is_new:
        parts.append("Everything is up to date; nothing was trained.")
    return Group(*parts)
