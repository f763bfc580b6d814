"""More or fewer pods for a search that runs."""

from __future__ import annotations

from csi_job.cluster.api import Cluster
from csi_job.cluster.budget import ENDED
from csi_job.cluster.stages import (
    COMPONENT,
    CONTROLLER,
    DIGEST,
    INSTANCE,
    Release,
    annotation,
    ending_of,
    find_release,
    is_paused,
    is_queued,
    sized,
)
from csi_job.errors import ClusterError


def scale_search(cluster: Cluster, release_name: str | None, num_pods: int) -> str:
    """Give the search of a release so many pods; 0 suspends it.

    Pods beyond the number hand their trials over from their checkpoints. What is set here stands until the
    parallelism of the values changes.

    Returns:
        what was done, in one line.

    Raises:
        ClusterError: there is no such release, or no search that runs.

    """
    release = find_release(cluster, release_name)
    jobs = cluster.jobs(release.search.labels)
    if not jobs:
        raise _no_search(cluster, release)
    job = jobs[-1]
    if ending_of(job) is not None:
        raise _finished(release)
    if annotation(job, ENDED):
        message = f"the search of {release.name} is over: the budget is spent"
        raise ClusterError(message, hint="raise budget.hours or budget.gpuHours by helm upgrade")
    before = "suspended" if is_paused(job) else f"{job['spec']['parallelism']} pods"
    if not cluster.patch_job(job["metadata"]["name"], {"spec": sized(num_pods, queued=is_queued(job))}):
        raise ClusterError(f"the search of {release.name} is being replaced", hint="run the same command again")
    after = f"{num_pods} pods" if num_pods else "suspended; any number above 0 resumes it"
    return f"the search of {release.name}: {before} -> {after}"


def _no_search(cluster: Cluster, release: Release) -> ClusterError:
    """Return why there is no Job of the search: it is yet to come, or it ended and was cleaned up."""
    finals = cluster.jobs(release.stages[-1].labels)
    controllers = cluster.jobs({INSTANCE: release.name, COMPONENT: CONTROLLER})
    ending = ending_of(controllers[-1]) if controllers else None
    if any(annotation(job, DIGEST) == release.stages[-1].digest for job in finals) or (ending and not ending.failed):
        return _finished(release)
    message = f"the search of {release.name} has not started"
    if ending:
        return ClusterError(f"{message}, and its controller has failed", hint="csi-job status --release shows why")
    return ClusterError(f"{message} yet", hint="set search.parallelism, or wait for the cache stage")


def _finished(release: Release) -> ClusterError:
    message = f"the search of {release.name} is finished"
    return ClusterError(message, hint="raise job.study.num_trials with helm upgrade to go on")
