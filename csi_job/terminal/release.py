"""A release on Kubernetes for a terminal and as JSON: its pods, the trials they run, and the GPUs they hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from csi_job.report import format as fmt
from csi_job.study.status import RunningStatus, StudyStatus
from csi_job.terminal.status import render_status, status_dict

if TYPE_CHECKING:
    from rich.console import RenderableType

MAX_PODS = 40  # rows shown; the rest is counted
STATE_STYLES = {"Running": "cyan", "Succeeded": "green", "Failed": "bold red", "Pending": "yellow"}


@dataclass(frozen=True)
class PodView:
    """A pod of a release."""

    name: str
    host: str
    """The name by which the study knows what runs in it."""
    stage: str
    state: str
    """`Running`, `Pending`, `Succeeded`, `Failed`, `Terminating`."""
    why: str
    """Why it does not start, or how it failed."""
    node: str
    age_s: float
    num_gpus: int
    """GPUs it asks for, and holds while it runs."""


@dataclass(frozen=True)
class ReleaseView:
    """A release at one moment."""

    name: str
    namespace: str
    pods: tuple[PodView, ...]
    gpu_hours: float
    """Over all pods of the search so far."""
    study: StudyStatus | None = None
    """None while it can't be known; `note` says why."""
    note: str = ""
    is_over: bool = False
    """Whether the controller has ended."""

    @property
    def num_gpus(self) -> int:
        """Return the GPUs that pods hold now."""
        return sum(pod.num_gpus for pod in self.pods if pod.state in ("Running", "Terminating"))


def render_release(view: ReleaseView) -> RenderableType:
    """Return one picture of a release: the study, a row a pod with its trial, the GPUs."""
    parts: list[RenderableType] = [render_status(view.study)] if view.study else []
    parts.append(_pods(view))
    gpus = f"{fmt.plural(view.num_gpus, 'GPU')} in use now, {view.gpu_hours:.1f} GPU hours used by the search"
    parts.append(Text(gpus, style="dim"))
    if view.note:
        parts.append(Text(view.note))
    return Group(*parts)


def release_json(view: ReleaseView) -> str:
    """Return the same as one JSON object."""
    content = asdict(view) | {"num_gpus": view.num_gpus}
    content["study"] = status_dict(view.study) if view.study else None
    return json.dumps(content, ensure_ascii=False)


def _pods(view: ReleaseView) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, title_justify="left")
    shared = _shared([pod.name for pod in view.pods])
    table.title = f"Release {view.name} in {view.namespace}" + (f", pods {shared}-…" if shared else "")
    for title in ("Pod", "Stage", "State", "Node"):
        table.add_column(title, overflow="fold")
    for title in ("Age", "GPUs", "Trial", "Epoch", "F1 so far"):
        table.add_column(title, justify="right")
    for pod in view.pods[:MAX_PODS]:
        state = Text(pod.state, style=STATE_STYLES.get(pod.state, ""))
        cells = (pod.node or fmt.MISSING, fmt.duration(pod.age_s), str(pod.num_gpus), *_trials(pod, view.study))
        table.add_row(pod.name.removeprefix(f"{shared}-"), pod.stage, state, *cells)
    troubles = [Text(f"{pod.name}: {pod.why}", style="yellow") for pod in view.pods[:MAX_PODS] if pod.why]
    more = len(view.pods) - MAX_PODS
    return Group(table, *troubles, *([Text(f"and {more} more pods", style="dim")] if more > 0 else []))


def _shared(names: Sequence[str]) -> str:
    """Return the words that all names begin with, `` for a single name."""
    words_of_all = zip(*(name.split("-") for name in names), strict=False)
    same = takewhile(lambda words: len(set(words)) == 1, words_of_all)
    return "-".join(words[0] for words in same) if len(names) > 1 else ""


def _trials(pod: PodView, study: StudyStatus | None) -> Sequence[str]:
    """Return trial, epoch and F1 of what runs in a pod; several trials may share it."""
    trials = [trial for trial in study.running if trial.host == pod.host and not trial.is_orphan] if study else []
    if pod.state not in ("Running", "Terminating") or not trials:
        return ("", "", "")
    return (
        _joined(str(trial.number) for trial in trials),
        _joined(_epoch(trial) for trial in trials),
        _joined(fmt.score(trial.f1) for trial in trials),
    )


def _epoch(trial: RunningStatus) -> str:
    done = 0 if trial.epoch is None else trial.epoch + 1
    return f"{done}/{trial.max_epochs}" if trial.max_epochs else str(done)


def _joined(cells: Iterable[str]) -> str:
    return " ".join(cells)
