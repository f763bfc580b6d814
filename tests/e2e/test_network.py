"""Network policies as the cluster enforces them: the search reaches only the database and DNS."""

import json
from typing import Any

import pytest

from tests.e2e.release import CHART, ENDLESS, Release, wait_until

pytestmark = pytest.mark.timeout(3600)
CLOSED = CHART / "examples" / "no-egress.yaml"
REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 10).close()
    print('reached')
except OSError as error:
    print('not', error)
"""


def test_the_search_reaches_database_and_dns_but_not_the_api_server_nor_another_pod(release):
    values = {"search.parallelism": 2, **ENDLESS, **_api_server(release)}
    release.helm("install", "-f", str(CLOSED), "--wait", "--timeout", "5m", values=values)
    wait_until("two pods search", lambda: len(release.running("search")) == 2, 240)
    one, other = release.running("search")
    address = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in release.items("pods", "search")}
    listen = "import http.server as h; h.HTTPServer(('', 8000), h.SimpleHTTPRequestHandler).serve_forever()"
    release.kubectl("exec", other, "--", "sh", "-c", f'nohup python -c "{listen}" >/dev/null 2>&1 &')

    # The policies take effect shortly after a pod has started.
    wait_until("the database is reached", lambda: reaches(release, one, "demo-csi-job-database", 5432), 60)
    wait_until("the other pod listens", lambda: reaches(release, other, "127.0.0.1", 8000), 60)
    wait_until("it is not reached", lambda: not reaches(release, one, address[other], 8000), 60)
    wait_until("the API server is not", lambda: not reaches(release, one, "kubernetes.default.svc", 443), 60)
    assert reaches(release, one, "demo-csi-job-database", 5432)
    release.helm("upgrade", "-f", str(CLOSED), values={**values, "job.study.num_trials": 4})
    release.wait_for_end(500)


def _api_server(release: Release) -> dict[str, Any]:
    """Values that let the controller reach this cluster's API server, and no other address."""
    slice_ = ("get", "endpointslices", "kubernetes", "-n", "default", "-o", "json")
    found = json.loads(release.as_admin.kubectl(*slice_))
    address, port = found["endpoints"][0]["addresses"][0], found["ports"][0]["port"]
    return {"controller.apiServerCidr": f"{address}/32", "controller.apiServerPorts": [port]}


def reaches(release: Release, pod: str, host: str, port: int) -> bool:
    """Whether a pod can open a connection; names are resolved by DNS."""
    ask = ("exec", pod, "--", "python", "-c", REACH, host, str(port))
    return "reached" in wait_until(f"an answer from {pod}", lambda: release.kubectl(*ask, check=False).strip(), 60)
