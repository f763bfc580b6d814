"""A Kueue queue for one namespace, whose quota is a number of pods."""

import re
from dataclasses import dataclass
from typing import Any

from tests.e2e.release import IMAGE, Release, pod, run

API = "kueue.x-k8s.io/v1beta2"
PLENTY = {"cpu": "1000", "memory": "1Ti"}
NAME = "stages"


@dataclass(frozen=True)
class Queue:
    """The local queue `stages` of a release's namespace; its cluster-scoped objects carry the namespace's name."""

    release: Release

    def make(self) -> None:
        name = self.release.namespace
        queue = {"clusterQueue": name}
        self.release.as_admin.apply(
            self._object("ResourceFlavor", name),
            self._object("WorkloadPriorityClass", name) | {"value": 1000, "description": "before the release"},
            self._cluster_queue(0),
            self._object("LocalQueue", NAME) | {"spec": queue},
        )

    def allow(self, num_pods: int) -> None:
        self.release.as_admin.apply(self._cluster_queue(num_pods))

    def preempt(self, num_pods: int) -> None:
        """Queue a Job of higher priority, which runs until it is deleted."""
        labels = {"kueue.x-k8s.io/queue-name": NAME, "kueue.x-k8s.io/priority-class": self.release.namespace}
        template = {"spec": pod("urgent", IMAGE, 10001, command=["sleep", "3600"])["spec"]}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "urgent", "labels": labels},
            "spec": {"parallelism": num_pods, "completions": num_pods, "suspend": True, "template": template},
        }
        self.release.apply(job)

    def admissions(self) -> list[str]:
        """Return the stages in the order of their first admission."""
        chosen = ("--field-selector=reason=Admitted", "--sort-by=.metadata.creationTimestamp", "-o", "name")
        names = self.release.kubectl("get", "events", *chosen)
        return list(dict.fromkeys(re.findall(r"csi-job-(cache|search|final)-", names)))

    def remove(self) -> None:
        """Delete the cluster-scoped objects; they stay until the namespace's own objects are gone."""
        name = self.release.namespace
        for kind in ("clusterqueue", "resourceflavor", "workloadpriorityclass"):
            run("kubectl", "delete", kind, name, "--wait=false", "--ignore-not-found", check=False)

    def _cluster_queue(self, num_pods: int) -> dict[str, Any]:
        name = self.release.namespace
        quota = PLENTY | {"pods": str(num_pods)}
        resources = [{"name": resource, "nominalQuota": amount} for resource, amount in quota.items()]
        spec = {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [{"coveredResources": list(quota), "flavors": [{"name": name, "resources": resources}]}],
        }
        return self._object("ClusterQueue", name) | {"spec": spec}

    def _object(self, kind: str, name: str) -> dict[str, Any]:
        return {"apiVersion": API, "kind": kind, "metadata": {"name": name}}
