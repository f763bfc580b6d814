"""Links between the pages of a work folder: report, evaluations, comparison, model cards."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from csi_job.files import is_file
from csi_job.work_folder import ModelFolder


@dataclass(frozen=True)
class Link:
    """A page, by its title and its address relative to the page that links to it."""

    title: str
    href: str
    is_current: bool = False


def page_links(folder: ModelFolder, study: str, page: Path, *, soon: Collection[Path] = ()) -> list[Link]:
    """Return links from a page to itself and to the pages of a study and its models that exist, or will `soon`."""
    models = {"model": folder.optimized_model, "baseline": folder.baseline_model}
    pages = {"Report": folder.work.report(study)} if study else {}
    pages |= {f"Evaluation of the {name}": folder.evaluation_page(path.stem) for name, path in models.items()}
    pages |= {"Comparison": folder.evaluation_page("comparison")}
    pages |= {f"Card of the {name}": path.with_suffix(".html") for name, path in models.items()}
    if page not in pages.values():
        pages["This page"] = page
    return [
        Link(title, quote(os.path.relpath(path, page.parent)), path == page)
        for title, path in pages.items()
        if path == page or path in soon or is_file(path)
    ]
