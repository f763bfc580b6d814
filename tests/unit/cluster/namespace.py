"""A namespace in memory for unit tests, and the stages of a release in it.

`api_contract.py` holds it to the rules of the real API server.
"""

import copy
import itertools
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from csi_job.cluster import stages
from csi_job.cluster.api import AlreadyExistsError, Cluster, NotAllowedError, NotFoundError, Object, ServerClock
from csi_job.cluster.budget import Budget, Usage
from csi_job.cluster.controller import ControllerOptions, run_controller
from csi_job.cluster.search_run import SearchRun
from csi_job.cluster.stage_run import JOB_NAME, JOB_UID, StageRun
from csi_job.config import load_settings
from csi_job.errors import ClusterError, CsiJobError
from csi_job.study.status import BestStatus, ConfirmationStatus, StudyStatus

FIELD = 'the API server rejected the request: Job.batch "a" is invalid: spec.template.spec.tolerations[0]: "Exist"'
CLASS = 'the API server rejected the request: pods "a" is forbidden: no PriorityClass with name p was found'


class Namespace(Cluster):
    """The real `Cluster` on an API server in memory; a write to an object changes the dictionary in place."""

    def __init__(self, *objects: Object, forbidden: Collection[str] = ()) -> None:
        self.namespace, self.forbidden = "here", forbidden
        self.refused: dict[str, ClusterError] = {}
        """By kind: why none can be created."""
        self.objects: dict[tuple[str, str], Object] = {}
        self._applied: dict[tuple[str, str], Object] = {}
        self._uids = itertools.count()
        for item in objects:
            self._create(item["kind"], body=item)

    def _request(self, verb: str, kind: str, **arguments: Any) -> Object:
        if kind in self.forbidden:
            raise NotAllowedError(f"the API server rejected the request: {kind} is forbidden")
        reply: Object = getattr(self, f"_{verb}")(kind, **arguments)
        return copy.deepcopy(reply)

    def _get(self, kind: str, name: str = "", label_selector: str = "", field_selector: str = "") -> Object:
        if name:
            return self._existing(kind, name)
        wanted = dict(part.split("=") for part in label_selector.split(",") if part)
        fields = dict(part.split("=") for part in field_selector.split(",") if part)
        items = [item for (one, _), item in self.objects.items() if one == kind]
        found = [item for item in items if wanted.items() <= item["metadata"].get("labels", {}).items()]
        return {"items": [item for item in found if all(_field(item, path) == fields[path] for path in fields)]}

    def _create(self, kind: str, *, body: Mapping[str, Any], dry_run: str = "") -> Object:
        item = copy.deepcopy(dict(body))
        if reason := self.refused.get(kind):
            raise reason
        if dry_run:
            return item
        item["metadata"].setdefault("namespace", self.namespace)
        item["metadata"].setdefault("creationTimestamp", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
        if kind == "Job":
            item["metadata"].setdefault("uid", f"uid-{next(self._uids)}")
            _check_admission(item)
        if kind == "Pod" and (owner := self.objects.get(("Job", item["metadata"].get("labels", {}).get(JOB_NAME, "")))):
            item["metadata"]["labels"][JOB_UID] = owner["metadata"]["uid"]
        key = (kind, item["metadata"]["name"])
        if key in self.objects:
            raise AlreadyExistsError(f'the API server rejected the request: {kind} "{key[1]}" already exists')
        self.objects[key] = item
        return item

    def _server_side_apply(self, kind: str, *, body: Mapping[str, Any], dry_run: str = "", **_: Any) -> Object:
        if dry_run:
            return self._create(kind, body=body, dry_run=dry_run)
        key = (kind, body["metadata"]["name"])
        before = self._applied.get(key, {})
        self._applied[key] = copy.deepcopy(dict(body))
        if key not in self.objects:
            return self._create(kind, body=body)
        return self._write(kind, key[1], _apply(self.objects[key], before, copy.deepcopy(dict(body))))

    def _patch(self, kind: str, *, name: str, body: Mapping[str, Any], **_: Any) -> Object:
        merged = merge_patch(self._existing(kind, name), copy.deepcopy(body))
        _disown(self._applied.get((kind, name), {}), body)
        return self._write(kind, name, merged)

    def _delete(self, kind: str, *, name: str, **_: Any) -> Object:
        self._applied.pop((kind, name), None)
        self._existing(kind, name)
        return self.objects.pop((kind, name))

    def _existing(self, kind: str, name: str) -> Object:
        if (kind, name) not in self.objects:
            raise NotFoundError(f'the API server rejected the request: {kind} "{name}" not found')
        return self.objects[kind, name]

    def _write(self, kind: str, name: str, new: Object) -> Object:
        item = self._existing(kind, name)
        if kind == "Job":
            before, after = item["spec"], new["spec"]
            if any(before.get(key) != after.get(key) for key in {*before, *after} - {*stages.MUTABLE_FIELDS}):
                raise ClusterError("the API server rejected the request: field is immutable")
            number = after.get("completions")
            if before.get("completions") != number and number != after.get("parallelism"):
                raise ClusterError("the API server rejected the request: completions only change with parallelism")
            least = [stages.get_annotation(one, stages.MIN_PODS) for one in (item, new)]
            if least[0] and not before.get("suspend") and before.get("parallelism") != after.get("parallelism"):
                raise ClusterError('the API server rejected the request: admission webhook "vjob.kb.io" denied it')
            if least[0] != least[1]:
                _check_admission(new)
        item.clear()
        item.update(new)
        return item

    def end(self, kind: str, reason: str = "") -> None:
        for (one, _), item in self.objects.items():
            if one == "Job":
                item["status"] = ended(kind, reason)

    def names(self, component: str) -> list[str]:
        return [job["metadata"]["name"] for job in self.jobs({stages.COMPONENT: component})]

    def only(self) -> Object:
        """Return the only Job, the stored object itself."""
        (job,) = [item for (kind, _), item in self.objects.items() if kind == "Job"]
        return job


def _check_admission(job: Object) -> None:
    """Refuse what Kueue's webhook refuses."""
    least = stages.get_annotation(job, stages.MIN_PODS)
    if least and not 0 < int(least) < job["spec"].get("parallelism", 1):
        raise ClusterError('the API server rejected the request: admission webhook "vjob.kb.io" denied the request')


def _field(item: Any, path: str) -> Any:
    for key in path.split("."):
        item = item.get(key, {})
    return item


def pass_time(monkeypatch: pytest.MonkeyPatch, seconds: float, run: StageRun | None = None) -> None:
    """Let time pass on the API server's clock, and the controller then look at a stage."""
    monkeypatch.setattr(ServerClock, "_ahead", ServerClock._ahead + timedelta(seconds=seconds))
    if run is not None:
        run.reconcile()


def event(job: str, reason: str, message: str, ago_s: float, kind: str = "Job", **fields: Any) -> Object:
    """Return an event of an object, reported once."""
    at = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat(timespec="seconds")
    name = f"{job}.{reason}.{ago_s}"
    about = {"kind": kind, "name": job}
    times = {"firstTimestamp": at, "lastTimestamp": at}
    kinds = {"type": "Warning", "reason": reason, "message": message}
    return {"kind": "Event", "metadata": {"name": name}, "involvedObject": about, **kinds, **times, **fields}


UNBOUND = {"type": "PodScheduled", "status": "False", "message": "pod has unbound immediate PersistentVolumeClaims"}


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def _apply(live: Any, before: Mapping[str, Any], new: Mapping[str, Any]) -> Any:
    """Set what is applied, and remove what was applied before but no longer is; lists are atomic here."""
    result = dict(live)
    for key in {*before, *new}:
        nested = all(isinstance(part.get(key, {}), Mapping) for part in (result, before, new))
        if nested and (key in new or key in result):
            result[key] = _apply(result.get(key, {}), before.get(key, {}), new.get(key, {}))
        elif key in new:
            result[key] = new[key]
        else:
            result.pop(key, None)
    return result


def _disown(applied: Object, patch: Mapping[str, Any]) -> None:
    """Forget that a patched field was applied: the patch owns it now."""
    for key, value in patch.items():
        if isinstance(value, Mapping) and isinstance(applied.get(key), dict):
            _disown(applied[key], value)
        else:
            applied.pop(key, None)


def ended(kind: str, reason: str = "", ago_s: float = 0.0) -> Object:
    at = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat(timespec="seconds")
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "lastTransitionTime": at}]}


class Watch:
    """A study with a fixed status; its winner is confirmed unless trainings are left, or it has new trials."""

    def __init__(self, num_finished: int, target: int = 4) -> None:
        self.num_finished, self.num_paused, self.target = num_finished, 0, target
        self.planned_for: int | None = None
        self.num_left, self.has_ended, self.is_away, self.is_missing = 0, False, False, False
        self.all_outside_space = False
        """Whether no complete trial is inside the study's space, so that none is the best."""
        self.used = Usage()

    def end_search(self, *, ended: bool) -> bool:
        self.has_ended = ended
        return not self.is_away

    def add_usage(self, usage_since: Callable[[float], Usage]) -> Usage | None:
        self.used += usage_since(self.used.until_s)
        return self.used

    def status(self) -> StudyStatus | None:
        if self.is_missing:
            return None
        none: Any = None
        planned_for = self.num_finished if self.planned_for is None else self.planned_for
        found = ConfirmationStatus(8, self.num_left, (), planned_for)
        counts = self.target, self.num_finished, 0, 0, 0, 0, 0
        has_best = self.num_finished and not self.all_outside_space
        best = BestStatus(0, 0.5, None, {}, "the best val_f1, 0.5000") if has_best else None
        return StudyStatus("s", "f1", *counts, (), best, none, none, (), found, self.num_paused)


def stage(
    name: str = "search", *, parallelism: int = 2, image: str = "a", queue: str = "", num_gpus: int = 1
) -> stages.Stage:
    container = {"image": image, "resources": {"limits": {"nvidia.com/gpu": num_gpus}}}
    spec = {"parallelism": parallelism, "template": {"spec": {"containers": [container]}}}
    labels = stages.selector("r", name) | ({stages.QUEUE: queue} if queue else {})
    metadata = {"name": f"r-{name}", "labels": labels, "annotations": {stages.MIN_PODS: "1"} if queue else {}}
    manifest = {"kind": "Job", "metadata": metadata, "spec": spec}
    return stages.Stage(name, manifest, image * 8)


def release_map(name: str = "r", **annotations: str) -> Object:
    data = {f"{one}.yaml": yaml.safe_dump(dict(stage(one).manifest)) for one in (*stages.STAGES, "fetch")}
    labels = stages.selector(name, "stages")
    metadata = {"name": f"{name}-stages", "uid": "u", "labels": labels, "annotations": annotations}
    return {"kind": "ConfigMap", "metadata": metadata, "data": data}


def search(
    namespace: Namespace,
    watch: Watch,
    chosen: stages.Stage,
    digest: str = "first",
    done: Mapping[str, str] | None = None,
    **limits: Any,
) -> SearchRun:
    owner = {"kind": "ConfigMap", "name": "r-stages"}
    release = stages.Release("r", digest, owner, (chosen, stage("final")), {}, done=done or {})
    options: dict[str, Any] = {"budget": Budget(), "max_rounds": 3, "missing_s": 1} | limits
    study: Any = watch
    return SearchRun(namespace, release, chosen, controller_digest=digest, watch=study, **options)


def started(watch: Watch, chosen: stages.Stage, **options: Any) -> tuple[Namespace, SearchRun]:
    run = search(namespace := Namespace(), watch, chosen, **options)
    run.reconcile()
    return namespace, run


class Failing(Namespace):
    """A namespace that answers the first requests for ConfigMaps with these errors."""

    def __init__(self, *errors: CsiJobError) -> None:
        super().__init__(release_map(**{stages.DIGEST: "d"}))
        self.errors = list(errors)
        self.num_requests = 0

    def _request(self, verb: str, kind: str, **arguments: Any) -> Object:
        self.num_requests += 1
        if kind == "ConfigMap" and self.errors:
            raise self.errors.pop(0)
        return super()._request(verb, kind, **arguments)


def run(namespace: Namespace, missing_s: float = 0.0, budget: Budget = Budget(), **settings: Any) -> str:  # noqa: B008 - frozen
    """Run the controller of the release in `Failing`."""
    options = ControllerOptions("r-stages", "d", missing_s, budget=budget)
    return run_controller(namespace, options, load_settings(settings).settings)
