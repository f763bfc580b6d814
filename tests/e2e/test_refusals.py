"""What the API server refuses is named by the check and the controller, before any work or within seconds."""

import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from csi_job.cluster.stages import COMPONENT, STAGES
from tests.e2e.release import ENDLESS, IMAGE, Release, pod, secret, wait_until

pytestmark = pytest.mark.timeout(1200)


SERVE = """
import http.server, json, ssl

class Refuse(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        uid = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['request']['uid']
        response = {'uid': uid, 'allowed': False, 'status': {'message': 'not here'}}
        review = {'apiVersion': 'admission.k8s.io/v1', 'kind': 'AdmissionReview', 'response': response}
        body = json.dumps(review).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain('/secret/tls.pem')
server = http.server.ThreadingHTTPServer(('', 8443), Refuse)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def limits(kind: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "small"}, "spec": spec}


LIMIT_RANGE = limits("LimitRange", limits=[{"type": "Container", "max": {"cpu": "1"}}])
QUOTA = limits("ResourceQuota", hard={"limits.cpu": "5", "pods": "9"})


@pytest.mark.parametrize(
    ("values", "objects", "named"),
    [
        ({"final.priorityClassName": "nowhere"}, [], "no PriorityClass with name nowhere was found"),
        ({"search.runtimeClassName": "nowhere"}, [], 'RuntimeClass "nowhere" not found'),
        (
            {"final.tolerations": [{"operator": "Exists", "key": "a", "value": "b"}]},
            [],
            "final: spec.tolerations[0].operator: ",
        ),
        (
            {"final.affinity": {"nodeAffinity": {"required": []}}},
            [],
            "nodeAffinity.required: field not declared in schema",
        ),
        ({}, [LIMIT_RANGE], "maximum cpu usage per Container is 1, but limit is 8; change search.resources"),
        ({}, [QUOTA], "exceeded quota: small, requested: limits.cpu=8"),
        ({"work.storageClass": "nowhere"}, [], 'volume claim demo-csi-job-work: storageclass.storage.k8s.io "nowhere"'),
    ],
    ids=["priority", "runtime", "value", "field", "limits", "quota", "storage"],
)
def test_what_would_be_refused_is_found_before_any_work(release, values, objects, named):
    for item in objects:
        release.as_admin.apply(item)
    release.helm("install", values=values)

    checked = release.csi_job("check", check=False)
    release.wait_for_end(60, "Failed")

    assert named.replace("exceeded quota: small, requested: limits.cpu=8", "small allows limits.cpu 5") in checked
    assert named in release.outcome()
    _ended_at_once(release)
    assert [release.items("jobs", stage) for stage in STAGES] == [[], [], []]


def test_a_webhook_that_is_away_is_waited_for_its_refusal_ends_the_release_and_so_does_one_without_service(
    release, webhook
):
    webhook("webhook")
    release.helm("install", values={"controller.missingSeconds": 1})
    down = "an admission webhook does not answer .*failed calling webhook .*; retrying without limit"
    wait_until("the outage is reported", lambda: re.search(down, release.log()), 90)
    serve = ["python", "/secret/serve.py"]
    release.apply(pod("webhook", IMAGE, 65532, mounted_secret="webhook", command=serve))
    release.wait_for_end(180, "Failed")
    assert 'cache can\'t start: admission webhook "pods.example.org" denied the request: not here' in release.outcome()

    webhook("nowhere")
    release.helm("upgrade", values={"controller.missingSeconds": 1})
    release.wait_for_end(90, "Failed")
    assert re.search('failed calling webhook .*service "nowhere" not found; ask an administrator', release.outcome())
    _ended_at_once(release)

    release.as_admin.kubectl("delete", "validatingwebhookconfiguration", release.namespace)
    release.helm("upgrade")
    wait_until("the pod is created", lambda: release.items("pods", "cache"), 60)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"database.image.tag": "none", "image.pullPolicy": "Never"}, "does not start: .*postgres:none"),
        ({"database.priorityClassName": "nowhere"}, "can't be created: no PriorityClass with name nowhere was found"),
    ],
    ids=["image", "priority"],
)
def test_a_database_that_cannot_start_ends_the_release(release, values, named):
    release.helm("install", values=values)

    release.wait_for_end(90, "Failed")

    assert re.search(rf"the database's pod .*{named}", release.outcome()), release.outcome()
    _ended_at_once(release)


def test_a_quota_that_others_exhaust_is_waited_for(release):
    release.as_admin.apply(limits("ResourceQuota", hard={"pods": "3"}))
    release.apply(pod("other", IMAGE, 65532, command=["sleep", "600"]))
    release.helm("install", values={"controller.missingSeconds": 300})
    wait_until("the refusal is reported", lambda: "exceeded quota: small, requested: pods=1" in release.log(), 60)
    assert "leaves no room for cache: pods 3 of 3 are used" in release.csi_job("check", check=False)

    release.kubectl("delete", "pod", "other")

    wait_until("the pod is created", lambda: release.items("pods", "cache"), 120)


def test_a_search_gives_way_to_a_cache_stage_that_their_quota_refuses(release):
    """Kubernetes retries a refused pod ever less often, yet does so before `controller.missingSeconds` are over."""
    # Room for database, two controllers and the search's pods, but not for a pod of the cache stage beside them.
    release.as_admin.apply(limits("ResourceQuota", hard={"limits.memory": "37Gi"}))
    values = {**ENDLESS, "search.parallelism": 2}
    release.helm("install", values=values)
    wait_until("two pods search", lambda: len(release.running("search")) == 2, 240)

    release.helm("upgrade", values=values | {"cache.env": [{"name": "AGAIN", "value": "1"}]})

    wait_until("the search gives way", lambda: "hands over its trials until the cache is done" in release.log(), 120)
    wait_until("the cache is done", lambda: "cache: done" in release.log(), 120)
    wait_until("two pods search again", lambda: len(release.running("search")) == 2, 120)
    assert release.trials()["FAIL"] == 0


@pytest.fixture
def webhook(release: Release) -> Iterator[Callable[[str], None]]:
    """Point a validating webhook for the cache stage's pods at a service of the namespace; so far nothing serves it."""
    authority = trustme.CA()
    served = authority.issue_cert(f"webhook.{release.namespace}.svc").private_key_and_cert_chain_pem.bytes().decode()
    spec = {"selector": {"name": "webhook"}, "ports": [{"port": 443, "targetPort": 8443}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "webhook"}, "spec": spec}
    release.apply(secret("webhook", **{"tls.pem": served, "serve.py": SERVE}), service)
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "*"}

    def point_at(name: str) -> None:
        config = {
            "service": {"namespace": release.namespace, "name": name},
            "caBundle": b64encode(authority.cert_pem.bytes()).decode(),
        }
        hook = {
            "name": "pods.example.org",
            "clientConfig": config,
            "rules": [rule],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": release.namespace}},
            "objectSelector": {"matchLabels": {COMPONENT: "cache"}},
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": 5,
        }
        manifest = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
        release.as_admin.apply({**manifest, "metadata": {"name": release.namespace}, "webhooks": [hook]})

    yield point_at
    release.as_admin.kubectl("delete", "validatingwebhookconfiguration", release.namespace, "--ignore-not-found")


def _ended_at_once(release: Release) -> None:
    """The controller ended with its first pod and an exit code that is not retried, in one line."""
    (pod_,) = release.controller_pods()
    (controller,) = pod_["status"]["containerStatuses"]
    assert controller["state"]["terminated"]["exitCode"] in {2, 3}
    assert controller["restartCount"] == 0
    assert "Traceback" not in release.outcome()
