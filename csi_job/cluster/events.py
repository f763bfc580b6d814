"""What happens to a release, as Kubernetes Events on the ConfigMap of its stages: `kubectl events` shows them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from csi_job.cluster.api import FIELD_MANAGER, Cluster
from csi_job.cluster.stages import Release
from csi_job.errors import ClusterError
from csi_job.files import digest_json

MAX_LENGTH: Final = 1024  # of a message, by Kubernetes


def record_event(cluster: Cluster, release: Release, reason: str, message: str, *, is_warning: bool = False) -> None:
    """Record an Event, unless this controller, or one before it with the same settings, has done so.

    Like Kubernetes' own, Events are no more than information: one that cannot be recorded is lost.

    Args:
        cluster: the namespace.
        release: the release that it is about.
        reason: one word in CamelCase.
        message: one line.
        is_warning: whether someone should look at it.

    """
    name, now = release.owner["name"], f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.{digest_json([release.digest, reason, message])[:16]}"},
        "involvedObject": {**release.owner, "namespace": cluster.namespace},
        "reason": reason,
        "message": message[:MAX_LENGTH],
        "type": "Warning" if is_warning else "Normal",
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "source": {"component": FIELD_MANAGER},
    }
    with suppress(ClusterError):  # also of one that exists already
        cluster.create(event)
