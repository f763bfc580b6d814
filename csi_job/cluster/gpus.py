"""What counts as a GPU: the resource that the release asks for by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

GPU_RESOURCE: Final = "csi-job/gpu-resource"  # annotation of the stages' ConfigMap


def is_gpu(resource: str, gpu_resource: str) -> bool:
    """Return whether a resource is the release's GPU; where that is not known, whether its name says so."""
    return resource == gpu_resource if gpu_resource else "gpu" in resource


def num_gpus(pod: Mapping[str, Any], gpu_resource: str) -> int:
    """Return the GPUs of a pod, or of a Job's template."""
    resources = pod["spec"]["containers"][0]["resources"]
    asked = (resources.get("requests") or {}) | (resources.get("limits") or {})
    return sum(int(number) for name, number in asked.items() if is_gpu(name, gpu_resource))
