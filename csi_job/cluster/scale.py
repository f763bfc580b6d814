"""More or fewer pods for a search that runs."""

from __future__ import annotations

from csi_job.cluster.api import Cluster
from csi_job.cluster.stages import ending_of, find_release, is_paused, is_queued, sized
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
        message = f"the search of {release.name} has not started yet"
        raise ClusterError(message, hint="set search.parallelism, or wait for the cache stage")
    job = jobs[-1]
    if ending_of(job) is not None:
        message = f"the search of {release.name} is finished"
        raise ClusterError(message, hint="raise job.study.num_trials with helm upgrade to go on")
    before = "suspended" if is_paused(job) else f"{job['spec']['parallelism']} pods"
    cluster.patch_job(job["metadata"]["name"], {"spec": sized(num_pods, queued=is_queued(job))})
    after = f"{num_pods} pods" if num_pods else "suspended; any number above 0 resumes it"
    return f"the search of {release.name}: {before} -> {after}"
