"""A release in its own namespace, with Pod Security `restricted` enforced, driven by a user of that namespace alone."""

import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator

import pytest

from tests.conftest import missing_service
from tests.e2e.release import Release, run

USER = "tenant"
STANDARD = "pod-security.kubernetes.io"
HOW = (
    "make a cluster of one node, 2 CPUs and 8 GiB, with a ReadWriteMany storage class `shared` (or name yours in "
    "E2E_VALUES) and the images: kind create cluster && kind load docker-image csi-job:test postgres:17; or k3d "
    "cluster create && k3d image import csi-job:test postgres:17; any other will do, with KUBECONFIG set and E2E_IMAGE"
)


@pytest.fixture(scope="session")
def _cluster() -> None:
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            missing_service(f"{program} is not installed")
    if not os.environ.get("KUBECONFIG"):
        missing_service(f"KUBECONFIG names no test cluster; {HOW}")
    if run("kubectl", "get", "--raw", "/readyz", check=False).returncode != 0:
        missing_service(f"the test cluster does not answer; {HOW}")


@pytest.fixture
def role() -> str:
    """What the user may do in the namespace, as one of Kubernetes' own ClusterRoles; nothing elsewhere."""
    return "admin"


@pytest.fixture
def release(
    _cluster: None, role: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    """A release that is not installed yet; its log is shown if the test fails."""
    base = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:30].strip("-")
    namespace = f"{base}-{uuid.uuid4().hex[:6]}"
    labels = {f"{STANDARD}/enforce": "restricted", f"{STANDARD}/warn": "restricted"}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
    run("kubectl", "create", "-f", "-", input=json.dumps(manifest))
    made = Release(namespace, user=tmp_path_factory.mktemp("user") / "kubeconfig")
    _make_user(made, role)
    yield made
    if os.environ.get("E2E_KEEP"):
        return
    sys.stdout.write(made.as_admin.log())
    sys.stdout.write(made.as_admin.kubectl("get", "pods,jobs", "-o", "wide", check=False))
    # Jobs first: a namespace deletes its pods before its Jobs, which then try in vain to replace them.
    made.as_admin.kubectl("delete", "jobs", "--all", "--wait=false", check=False)
    run("kubectl", "delete", "namespace", namespace, "--wait=false", check=False)


def _make_user(release: Release, role: str) -> None:
    """Create the release's user and write its kubeconfig."""
    kubectl = release.as_admin.kubectl
    account = f"--serviceaccount={release.namespace}:{USER}"
    kubectl("create", "serviceaccount", USER)
    kubectl("create", "rolebinding", USER, f"--clusterrole={role}", account)
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    config["users"][0]["user"] = {"token": kubectl("create", "token", USER, "--duration=3h").strip()}
    config["contexts"][0]["context"]["namespace"] = release.namespace
    release.user.write_text(json.dumps(config))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Report a failure at once, not only after the last test."""
    if report.failed and not os.environ.get("PYTEST_XDIST_WORKER"):
        sys.stderr.write(f"\n{report.nodeid} failed after {report.duration:.0f} s\n{report.longreprtext}\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest first, by their time limits, so that in parallel no long one runs alone at the end."""

    def limit(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0.0

    items.sort(key=limit, reverse=True)
