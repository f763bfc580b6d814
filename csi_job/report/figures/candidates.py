"""How sure the result is: candidates trained again with other seeds, and two models on the test patients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csi_job.html.plot import BLUE, GOLD, GREY, TEAL, Figure, Plot, layout
from csi_job.radiographs.zones import ZONES
from csi_job.report import format as words
from csi_job.report.figures.style import BASELINE_MARKER, F1_AXIS
from csi_job.report.results import Measured, measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from csi_job.report.results import Json, Results

ROW_HEIGHT_PX = 46
OFFSET = 0.13  # of a row, by which two series stand apart


def candidates_plot(confirmed: Json) -> Plot:
    """Show each candidate's F1 of the search, of each seed, and their mean ± 1 standard deviation."""
    rows = [candidate for candidate in confirmed["candidates"] if candidate["seeds"]]
    names = [candidate_name(candidate) for candidate in rows]
    caption = (
        "Filled markers: mean over seeds; bars: ± 1 standard deviation; small dots: single runs. Hollow markers: the "
        "result in the search, which is partly luck."
    )
    key, title = "candidates", "Retrained candidates"
    if not rows:
        return Plot(key, title, missing="No candidate could be retrained.")
    traces = [
        _points([c["search_value"] for c in rows], names, "In the search", GREY, symbol="circle-open", size=9),
        _points(
            [run["val_f1"] for c in rows for run in c["seeds"]],
            [name for name, c in zip(names, rows, strict=True) for _ in c["seeds"]],
            "Single run",
            BLUE,
            symbol="circle",
            size=5,
        ),
        *(_means(rows, is_winner=is_winner) for is_winner in (True, False)),
    ]
    result = _row_layout(len(rows), F1_AXIS)
    result["yaxis"].update(
        type="category", categoryorder="array", categoryarray=names[::-1], range=[-0.6, len(rows) - 0.4]
    )
    return Plot(key, title, caption, {"data": traces, "layout": result})


def zones_plot(results: Results) -> Plot:
    """Show the test F1 of the optimised model and of the baseline, all zones together and one by one."""
    caption = "F1 on the test patients with its confidence interval; a wide interval means few patients."
    names = ["All zones", *(zone.replace("_", " ") for zone in ZONES)]
    optimised = [measured(results.evaluation, "f1_macro", zone) for zone in ("", *ZONES)]
    baseline = [measured(results.baseline_evaluation, "f1_macro", zone) for zone in ("", *ZONES)]
    optimised_marker = {"color": BLUE, "symbol": "circle", "size": 10}
    traces = [_intervals(optimised, -OFFSET, "Optimized model", optimised_marker)]
    if results.baseline_evaluation is not None:
        traces.append(_intervals(baseline, OFFSET, "Baseline", {**BASELINE_MARKER, "color": TEAL}))
    result = _row_layout(len(names), "F1 on the test set (0 to 1)")
    result["yaxis"].update(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6])
    return Plot("zones", "Test F1 by zone", caption, {"data": traces, "layout": result})


def candidate_name(candidate: Json) -> str:
    """Return what a candidate is called."""
    name = "As given" if candidate["trial"] is None else f"Trial {candidate['trial']}"
    return f"{name}, winner" if candidate["winner"] else name


def _points(xs: Sequence[float | None], ys: Sequence[str], name: str, color: str, **marker: Any) -> dict[str, Any]:
    style = (
        {"color": color, **marker, "line": {"width": 1.5}} if "open" in marker["symbol"] else {"color": color, **marker}
    )
    trace = {"type": "scatter", "mode": "markers", "x": list(xs), "y": list(ys), "name": name, "marker": style}
    return {**trace, "hovertemplate": f"%{{y}}<br>{name}: %{{x:.3f}}<extra></extra>"}


def _means(candidates: Sequence[Json], *, is_winner: bool) -> dict[str, Any]:
    rows = [candidate for candidate in candidates if candidate["winner"] == is_winner]
    names = [candidate_name(candidate) for candidate in rows]
    means = [candidate["mean"] for candidate in rows]
    name, color = ("Mean (winner)", GOLD) if is_winner else ("Mean (others)", BLUE)
    trace = _points(means, names, name, color, symbol="diamond", size=12)
    stds = [candidate["std"] or 0.0 for candidate in rows]
    return {**trace, "error_x": {"type": "data", "array": stds, "thickness": 2, "width": 6, "color": GREY}}


def _intervals(values: Sequence[Measured], offset: float, name: str, marker: dict[str, Any]) -> dict[str, Any]:
    known = [(place, value) for place, value in enumerate(values) if value.value is not None]
    texts = [words.with_interval(value.value, value.low, value.high) for _, value in known]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [(v.high if v.high is not None else v.value) - v.value for _, v in known],  # type: ignore[operator]
        "arrayminus": [v.value - (v.low if v.low is not None else v.value) for _, v in known],  # type: ignore[operator]
        "thickness": 2,
        "width": 5,
        "color": marker["color"],
    }
    trace = {"type": "scatter", "mode": "markers", "name": name, "marker": marker, "error_x": bars}
    places = {"x": [value.value for _, value in known], "y": [place + offset for place, _ in known]}
    return {**trace, **places, "hovertext": texts, "hovertemplate": f"{name}: %{{hovertext}}<extra></extra>"}


def _row_layout(num_rows: int, x_title: str) -> Figure:
    result = layout(x_title, "", height_px=130 + ROW_HEIGHT_PX * num_rows)
    result["xaxis"].update(showgrid=True)
    result["yaxis"].update(showgrid=True, ticks="")
    return result
