"""Change the number of pods of a running search."""

from csi_job.cluster.api import Cluster
from csi_job.cluster.budget import ENDED_BY
from csi_job.cluster.stages import (
    CONTROLLER,
    DIGEST,
    GIVES_WAY,
    HELD,
    PARALLELISM,
    Release,
    find_release,
    get_annotation,
    is_paused,
    job_result,
    resize,
    selector,
)
from csi_job.errors import ClusterError
from csi_job.html.format import plural


def scale_search(cluster: Cluster, release_name: str | None, num_pods: int) -> str:
    """Scale the search of a release to this number of pods; 0 suspends it.

    Pods beyond the number hand over their trials from their checkpoints. The new number stands until the parallelism
    in the values changes.

    Returns:
        what was done, in one line.

    Raises:
        ClusterError: there is no such release, or no running search.
    """
    release = find_release(cluster, release_name)
    jobs = cluster.jobs(release.search.labels)
    if not jobs:
        raise _no_search(cluster, release)
    job = jobs[-1]
    if job_result(job) is not None:
        raise _finished(release)
    held = get_annotation(job, HELD)
    if held == GIVES_WAY:
        message = f"the search of {release.name} gives way to the cache stage, which lacks quota"
        raise ClusterError(message, hint="run the same command again when the cache is done")
    if held:
        raise _replaced(release)
    if get_annotation(job, ENDED_BY):
        message = f"the search of {release.name} has ended: its budget is exhausted"
        raise ClusterError(message, hint="raise budget.hours or budget.gpuHours with helm upgrade")
    before = "suspended" if is_paused(job) else plural(job["spec"]["parallelism"], "pod")
    # With the values' number, of which the controller may not know yet, so that it takes no change of theirs for newer.
    if not resize(cluster, job, num_pods, {PARALLELISM: str(release.search.parallelism)}):
        raise _replaced(release)
    after = plural(num_pods, "pod") if num_pods else "suspended; any number above 0 resumes it"
    return f"the search of {release.name}: {before} -> {after}"


def _no_search(cluster: Cluster, release: Release) -> ClusterError:
    """Return why the search has no Job: it has yet to start, or it ended and was cleaned up."""
    final = release.stages[-1]
    controllers = cluster.jobs(selector(release.name, CONTROLLER))
    result = job_result(controllers[-1]) if controllers else None
    has_final = any(get_annotation(job, DIGEST) == final.digest for job in cluster.jobs(final.labels))
    if has_final or (result and not result.failed):
        return _finished(release)
    message = f"the search of {release.name} has not started"
    if result:
        return ClusterError(f"{message}, and its controller has failed", hint="csi-job status --release shows why")
    return ClusterError(f"{message} yet", hint="set search.parallelism, or wait for the cache stage")


def _replaced(release: Release) -> ClusterError:
    return ClusterError(f"the search of {release.name} is being replaced", hint="run the same command again")


def _finished(release: Release) -> ClusterError:
    message = f"the search of {release.name} is finished"
    return ClusterError(message, hint="raise job.study.num_trials with helm upgrade to continue it")
