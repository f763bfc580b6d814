"""How many images of each score the splits hold."""

from typing import Any

from csi_job.cache.manifest import CacheInfo
from csi_job.html.plot import GREY, Plot, layout
from csi_job.radiographs.split import SPLITS
from csi_job.radiographs.zones import SCORES, ZONE_NAMES

COLOURS = ("#b9d5ec", "#7fb2dd", "#3b82c4", "#285f94", GREY)  # scores 0 to 3, then not graded


def scores_plot(info: CacheInfo) -> Plot:
    """Show the number of images with each score in each zone, one panel per split."""
    caption = (
        "Number of images with each score, by zone; darker means more congested. F1 is least certain for scores that "
        "are rare in a split."
    )
    result = layout("", "", height_px=330, barmode="stack", bargap=0.25)
    result["legend"].update(traceorder="normal")
    traces = []
    for place, split in enumerate(SPLITS):
        suffix = str(place + 1) if place else ""
        traces += _bars(info.class_counts[split], suffix)
        ends = [place / 3 + (0.02 if place else 0), (place + 1) / 3 - 0.02]
        title = {"text": f"{split.capitalize()} (images)", "font": {"size": 13}, "standoff": 6}
        result[f"xaxis{suffix}"] = {**result["xaxis"], "domain": ends, "anchor": f"y{suffix}", "title": title}
        hidden = {"showticklabels": not place, "autorange": "reversed", "anchor": f"x{suffix}", "showgrid": False}
        result[f"yaxis{suffix}"] = {**result["yaxis"], **hidden, "ticks": ""}
    return Plot("scores", "Scores by zone and split", caption, {"data": traces, "layout": result}, is_wide=True)


def _bars(counts_ZK: list[list[int]], suffix: str) -> list[dict[str, Any]]:
    """Return one trace per score; only those of the first panel, whose suffix is empty, enter the legend."""
    names = [*(f"score {score}" for score in SCORES), "not graded"]
    return [
        {
            "type": "bar",
            "orientation": "h",
            "x": [counts_K[index] for counts_K in counts_ZK],
            "y": list(ZONE_NAMES.values()),
            "name": name,
            "legendgroup": name,
            "showlegend": not suffix,
            "xaxis": f"x{suffix}",
            "yaxis": f"y{suffix}",
            "marker": {"color": COLOURS[index]},
            "hovertemplate": f"%{{y}}, {name}: %{{x}}<extra></extra>",
        }
        for index, name in enumerate(names)
    ]
