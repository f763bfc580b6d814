"""A release on Kubernetes, for a terminal and as JSON: its pods, the trials they run, and the GPUs they hold."""

import json
import re
from dataclasses import asdict, dataclass, replace
from itertools import takewhile

from rich.console import Group, RenderableType
from rich.text import Text

from csi_job.html import format as fmt
from csi_job.study.status import StudyStatus
from csi_job.terminal.status import epochs_done, render_status, status_dict
from csi_job.terminal.table import plain_table

MAX_PODS = 40  # rows shown; the rest is counted
NODE_WIDTH = 14  # characters
DIGEST = re.compile(r"-[0-9a-f]{8,10}(?=-)")
STATE_STYLES = {"Running": "cyan", "Succeeded": "green", "Failed": "bold red", "Pending": "yellow"}


@dataclass(frozen=True)
class PodView:
    """A pod of a release."""

    name: str
    host: str
    """The host name that the study has for its worker."""
    stage: str
    state: str
    """`Running`, `Pending`, `Succeeded`, `Failed`, `Terminating`."""
    why: str
    """Why it does not start, or why it failed."""
    node: str
    age_s: float
    num_gpus: int
    """GPUs it requests, and holds while it runs."""


@dataclass(frozen=True)
class ReleaseView:
    """A release at one moment."""

    name: str
    namespace: str
    pods: tuple[PodView, ...]
    gpu_hours: float
    """Used by all pods of the search so far."""
    study: StudyStatus | None = None
    """None if it is unknown; `note` says why."""
    note: str = ""
    is_over: bool = False
    """Whether the controller has ended."""

    @property
    def num_gpus(self) -> int:
        """Return the number of GPUs that pods hold now."""
        return sum(pod.num_gpus for pod in self.pods if pod.state in ("Running", "Terminating"))


def render_release(view: ReleaseView) -> RenderableType:
    """Return the study, one row per pod with its trials, and the GPUs."""
    parts: list[RenderableType] = [Text(view.note)] if view.note and not view.study else []
    names = [pod.name.split("-") for pod in view.pods]
    parts_shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
    shared = "-".join(part for part, *_ in parts_shared) if len(names) > 1 else ""
    if view.study:
        running = tuple(replace(trial, host=_short(trial.host, shared)) for trial in view.study.running)
        parts.append(render_status(replace(view.study, running=running)))
    parts.append(_pods(view, shared))
    gpus = f"{fmt.plural(view.num_gpus, 'GPU')} in use now, {view.gpu_hours:.1f} GPU hours used by the search"
    parts.append(Text(gpus, style="dim"))
    if view.note and view.study:
        parts.append(Text(view.note))
    return Group(*parts)


def release_json(view: ReleaseView) -> str:
    """Return the release as one JSON object."""
    content = asdict(view) | {"num_gpus": view.num_gpus}
    content["study"] = status_dict(view.study) if view.study else None
    return json.dumps(content, ensure_ascii=False)


def _pods(view: ReleaseView, shared: str) -> RenderableType:
    title = f"Release {view.name} in {view.namespace}" + (f", pods {shared}-…" if shared else "")
    left = ("Pod", "State", "Node")
    table = plain_table(*left, "Age", "GPUs", "Trial", "Epoch", "F1", left=left, title=title)
    for pod in view.pods[:MAX_PODS]:
        host = pod.node.partition(".")[0]  # of a long name the end, which differs between nodes
        node = host if len(host) <= NODE_WIDTH else f"…{host[1 - NODE_WIDTH :]}"
        state = Text(pod.state, style=STATE_STYLES.get(pod.state, ""))
        claimed = view.study.claimed if view.study and pod.state in ("Running", "Terminating") else ()
        trials = [trial for trial in claimed if trial.host == pod.host and not trial.is_orphan]  # one line for each
        parts = [(str(trial.number), epochs_done(trial), fmt.score(trial.f1)) for trial in trials]
        columns = ["\n".join(column) for column in zip(*parts, strict=True)] or ["", "", ""]
        cells = (node or fmt.MISSING, fmt.duration(pod.age_s), str(pod.num_gpus), *columns)
        table.add_row(_short(pod.name, shared), state, *cells)
    pods_by_problem: dict[str, list[str]] = {}
    for pod in view.pods[:MAX_PODS]:
        if pod.why:
            pods_by_problem.setdefault(pod.why, []).append(pod.name)
    problems = [Text(f"{', '.join(pods)}: {why}", style="yellow") for why, pods in pods_by_problem.items()]
    more = len(view.pods) - MAX_PODS
    return Group(table, *problems, *([Text(f"and {more} more pods", style="dim")] if more > 0 else []))


def _short(name: str, shared: str) -> str:
    """Return a pod's or worker's name without what all share and the digest of its Job, to fit a terminal."""
    return DIGEST.sub("", name.removeprefix(f"{shared}-")) if shared else name
