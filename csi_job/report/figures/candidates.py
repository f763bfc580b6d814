"""How certain the result is: candidates retrained with other seeds, and two models on the test patients."""

from collections.abc import Sequence
from typing import Any

from csi_job.evaluation.tables import measured
from csi_job.html import format as fmt
from csi_job.html.plot import BLUE, GOLD, GREY, TEAL, Figure, Plot, layout
from csi_job.radiographs.zones import ZONE_NAMES, ZONES
from csi_job.report.figures.style import BASELINE_MARKER, F1_AXIS, SHOW_HOVERTEXT
from csi_job.report.results import Json, Results

ROW_HEIGHT_PX = 46
OFFSET = 0.13  # of a row, by which two series are set apart


def candidates_plot(confirmed: Json) -> Plot:
    """Show each candidate's F1 in the search, of each seed, and their mean with the standard deviation."""
    key, title = "candidates", "Retrained candidates"
    rows = [candidate for candidate in confirmed["candidates"] if candidate["seeds"]]
    if not rows:
        return Plot(key, title, missing="No candidate could be retrained.")
    caption = (
        "Filled markers: mean over seeds; bars: ± 1 standard deviation; small dots: single runs. Hollow markers: the "
        "result in the search, which is partly luck."
    )
    names = [candidate_name(row) for row in rows]
    hollow = {"color": GREY, "symbol": "circle-open", "size": 9, "line": {"width": 1.5}}
    runs = [(run["val_f1"], name) for row, name in zip(rows, names, strict=True) for run in row["seeds"]]
    traces = [
        _points([row["search_value"] for row in rows], names, "In the search", hollow),
        _points([f1 for f1, _ in runs], [name for _, name in runs], "Single run", {"color": BLUE, "size": 5}),
        _means([row for row in rows if row["winner"]], "Mean (winner)", GOLD),
        _means([row for row in rows if not row["winner"]], "Mean (others)", BLUE),
    ]
    order = {"type": "category", "categoryorder": "array", "categoryarray": names[::-1]}
    result = _row_layout(len(rows), F1_AXIS, range=[-0.6, len(rows) - 0.4], **order)
    return Plot(key, title, caption, {"data": traces, "layout": result})


def zones_plot(results: Results) -> Plot:
    """Show the test F1 of the optimized model and of the baseline, for all zones together and one by one."""
    caption = "F1 on the test patients with its confidence interval; a wide interval means few patients."
    names = ["All zones", *ZONE_NAMES.values()]
    marker = {"color": BLUE, "symbol": "circle", "size": 10}
    traces = [_intervals(results.evaluation, -OFFSET, "Optimized model", marker)]
    if results.baseline_evaluation is not None:
        marker = {**BASELINE_MARKER, "color": TEAL}
        traces.append(_intervals(results.baseline_evaluation, OFFSET, "Baseline", marker))
    ticks = {"tickvals": list(range(len(names))), "ticktext": names}
    result = _row_layout(len(names), "F1 on the test set (0 to 1)", range=[len(names) - 0.4, -0.6], **ticks)
    return Plot("zones", "Test F1 by zone", caption, {"data": traces, "layout": result})


def candidate_name(candidate: Json) -> str:
    """Return the label of a candidate."""
    name = "As given" if candidate["trial"] is None else f"Trial {candidate['trial']}"
    return f"{name}, winner" if candidate["winner"] else name


def _points(xs: Sequence[float | None], ys: Sequence[str], name: str, marker: dict[str, Any]) -> dict[str, Any]:
    trace = {"type": "scatter", "mode": "markers", "x": list(xs), "y": list(ys), "name": name, "marker": marker}
    return {**trace, "hovertemplate": f"%{{y}}<br>{name}: %{{x:.3f}}<extra></extra>"}


def _means(candidates: Sequence[Json], name: str, color: str) -> dict[str, Any]:
    marker = {"color": color, "symbol": "diamond", "size": 12}
    trace = _points([row["mean"] for row in candidates], list(map(candidate_name, candidates)), name, marker)
    stds = [row["std"] or 0.0 for row in candidates]
    return {**trace, "error_x": {"type": "data", "array": stds, "thickness": 2, "width": 6, "color": GREY}}


def _intervals(evaluation: Json | None, offset: float, name: str, marker: dict[str, Any]) -> dict[str, Any]:
    """Return one marker with an interval per row; rows without a value are left out."""
    xs, ys, above, below, texts = [], [], [], [], []
    for place, zone in enumerate(("", *ZONES)):
        f1 = measured(evaluation, "f1_macro", zone)
        if f1.value is not None:
            xs.append(f1.value)
            ys.append(place + offset)
            above.append(0.0 if f1.high is None else f1.high - f1.value)
            below.append(0.0 if f1.low is None else f1.value - f1.low)
            texts.append(fmt.with_interval(*f1))
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 2, "width": 5}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": xs,
        "y": ys,
        "name": name,
        "marker": marker,
        "error_x": {**bars, "color": marker["color"]},
        "hovertext": texts,
        "hovertemplate": f"{name}: {SHOW_HOVERTEXT}",
    }


def _row_layout(num_rows: int, x_title: str, **y_axis: Any) -> Figure:
    result = layout(x_title, "", height_px=130 + ROW_HEIGHT_PX * num_rows)
    result["xaxis"].update(showgrid=True)
    result["yaxis"].update(showgrid=True, ticks="", **y_axis)
    return result
