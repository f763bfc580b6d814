"""A release on the test cluster, driven like a user would: with helm, kubectl and csi-job."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from csi_job.cluster.stage_run import JOB_NAME

CHART = Path(__file__).parents[2] / "helm"
VALUES = Path(__file__).parent / "values.yaml"
MORE_VALUES = os.environ.get("E2E_VALUES", "")  # for other clusters: storage classes, image, resources
IMAGE = os.environ.get("E2E_IMAGE", "docker.io/library/csi-job:test")

SLOWDOWN = 4.0  # several releases share the cores with each other and with whatever else runs there
OF_WATCHES = (
    "watch ended with error",
    "event bookmark expired",
)  # what Helm's client logs on a busy machine, as "Warning"
OF_SEARCH = "trials join studies using (study_id) where study_name not like '%/confirmation'"
ENDLESS = {"job.study.num_trials": 100_000, "job.study.max_epochs": 3}  # more than any machine finishes
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
INTERRUPT = ("python", "-c", "import os; os.kill(1, 2)")  # of a container; it exits with 130, which counts as a failure


def pod(
    name: str, image: str, user: int, claim: str = "", mounted_secret: str = "", **container: Any
) -> dict[str, Any]:
    """A pod that Pod Security `restricted` admits, with a volume at /data, and perhaps a secret at /secret."""
    security = {"runAsNonRoot": True, "runAsUser": user, "fsGroup": user, "seccompProfile": {"type": "RuntimeDefault"}}
    mounts = [{"name": "data", "mountPath": "/data"}]
    resources = {"requests": {"cpu": "100m", "memory": "64Mi"}}  # without requests it would starve beside the others
    data = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    volumes = [{"name": "data", **data}]
    if mounted_secret:
        mounts.append({"name": "secret", "mountPath": "/secret"})
        volumes.append({"name": "secret", "secret": {"secretName": mounted_secret, "defaultMode": 0o440}})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"name": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": security,
            "containers": [
                {
                    "name": name,
                    "image": image,
                    "securityContext": RESTRICTED,
                    "volumeMounts": mounts,
                    "resources": resources,
                    **container,
                }
            ],
            "volumes": volumes,
        },
    }


def secret(name: str, **values: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}


def run(*command: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"timeout": 300, **options}
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    if check and result.returncode != 0:
        message = f"{' '.join(map(str, command))}: exit {result.returncode}: {result.stdout}{result.stderr}"
        raise AssertionError(message)
    return result


def wait_until(what: str, is_so: Callable[[], Any], seconds: float, every: float = 1.0) -> Any:
    """Return the first true answer, or fail; `seconds` is generous on two idle cores."""
    seconds *= SLOWDOWN
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if answer := is_so():
            return answer
        time.sleep(every)
    message = f"not within {seconds:.0f} s: {what}"
    raise AssertionError(message)


@dataclass
class Release:
    namespace: str
    name: str = "demo"
    database: str = "demo-csi-job-database-0"  # the pod that holds the study
    user: Path = Path(os.environ.get("KUBECONFIG", ""))  # kubeconfig of whoever drives it

    @property
    def as_admin(self) -> Self:
        """The same release, driven by the administrator of the cluster."""
        return replace(self, user=Release.user)

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program as the user; helm and kubectl in the release's namespace."""
        program, *arguments = command
        namespace = ("-n", self.namespace) if program in ("helm", "kubectl") else ()
        return run(program, *namespace, *arguments, env={**os.environ, "KUBECONFIG": str(self.user)}, **options)

    def helm(
        self,
        action: str,
        *arguments: str,
        values: dict[str, Any] | None = None,
        chart: str | Path = CHART,
        check: bool = True,
    ) -> str:
        """Install or upgrade the chart with the tests' values, `values` last."""
        # A webhook such as Kueue's that lost its leadership on busy cores refuses every Job until it is back.
        job = ("create", "job", "probe", f"--image={IMAGE}", "--dry-run=server")
        wait_until("Jobs are admitted", lambda: self.as_admin.kubectl(*job, check=False), 120)
        repository, _, tag = IMAGE.rpartition(":")
        given = ["--set", f"image.repository={repository},image.tag={tag}"]
        files = ["-f", str(VALUES), *(["-f", MORE_VALUES] if MORE_VALUES else [])]
        more = [f"--set-json={name}={json.dumps(value)}" for name, value in (values or {}).items()]
        result = self.run("helm", action, self.name, chart, *files, *given, *more, *arguments, check=check)
        output = (result.stderr + result.stdout).splitlines()
        warnings = [line for line in output if "Warning" in line and not any(words in line for words in OF_WATCHES)]
        assert not warnings, "Pod Security or the API server warns"
        return result.stdout + result.stderr

    def uninstall(self) -> None:
        self.run("helm", "uninstall", self.name, "--wait", "--timeout", "3m")
        wait_until("no pod is left", lambda: self.items("pods") == [], 120)

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.run("kubectl", *arguments, check=check).stdout

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Apply objects, namespaced ones to the release's namespace."""
        bundle = {"apiVersion": "v1", "kind": "List", "items": manifests}
        self.run("kubectl", "apply", "-f", "-", input=json.dumps(bundle))

    def evict(self, name: str, *, check: bool = True) -> str:
        """Ask for the eviction of a pod, as a drain does; return what was answered to standard error."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}/eviction"
        ask = ("kubectl", "create", "--raw", path, "-f", "-")
        return self.run(*ask, input=json.dumps(eviction), check=check).stderr

    def csi_job(self, *arguments: str, check: bool = True) -> str:
        result = self.run(*self._ours("cluster", *arguments), check=check)
        return result.stdout + result.stderr

    def status(self) -> dict[str, Any]:
        """The release by `csi-job status`."""
        shown: dict[str, Any] = json.loads(self.run(*self._ours("status", "--json")).stdout)
        return shown

    def watch(self) -> Iterator[dict[str, Any]]:
        """The release by `csi-job status --watch`, again and again to its end."""
        command, env = self._ours("status", "--json", "--watch", "--every", "2"), {"KUBECONFIG": str(self.user)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}) as watching:
            try:
                yield from map(json.loads, watching.stdout or ())
            except BaseException:
                watching.kill()
                raise
        assert watching.returncode == 0

    def _ours(self, *command: str) -> tuple[str, ...]:
        code = "import sys; from csi_job.cli import main; main()"
        return (sys.executable, "-c", code, *command, "--release", self.name, "-n", self.namespace)

    def items(self, kind: str, component: str = "") -> list[dict[str, Any]]:
        chosen = f"app.kubernetes.io/instance={self.name}"
        chosen += f",app.kubernetes.io/component={component}" if component else ""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-l", chosen, "-o", "json"))["items"]
        return found

    def any_running(self, component: str) -> str:
        """The name of a running pod, once there is one."""
        return str(wait_until(f"{component} runs", lambda: self.running(component), 240)[0])

    def running(self, component: str) -> list[str]:
        """Names of the running pods, without those being deleted."""
        return [pod["metadata"]["name"] for pod in self._alive(component)]

    def uids(self, component: str) -> set[str]:
        """UIDs of the same pods; names may be reused."""
        return {pod["metadata"]["uid"] for pod in self._alive(component)}

    def _alive(self, component: str) -> list[dict[str, Any]]:
        pods = self.items("pods", component)
        return [p for p in pods if p["status"]["phase"] == "Running" and "deletionTimestamp" not in p["metadata"]]

    def containers(self, component: str) -> list[dict[str, Any]]:
        return [status for pod in self.items("pods", component) for status in pod["status"]["containerStatuses"]]

    def phases(self, component: str) -> set[str]:
        return {pod["status"]["phase"] for pod in self.items("pods", component)}

    def pause(self) -> int:
        """Suspend the search; return the number of finished trials once every pod has handed over its own."""
        self.csi_job("scale", "0")
        # A pending one may have started its container just before it is deleted.
        wait_until("every pod has handed over", lambda: not self.phases("search") & {"Pending", "Running"}, 120)
        return self.num_finished()

    def has_ended(self) -> str:
        """How the controller's Job ended: `Complete`, `Failed`, or empty."""
        jobs = self.controllers()
        conditions = jobs[-1]["status"].get("conditions", []) if jobs else []
        ends = [c["type"] for c in conditions if c["status"] == "True" and c["type"] in ("Complete", "Failed")]
        return ends[0] if ends else ""

    def controllers(self) -> list[dict[str, Any]]:
        """The Jobs of the controller, newest last: after an upgrade the old one may still be there."""
        return sorted(self.items("jobs", "controller"), key=lambda job: str(job["metadata"]["creationTimestamp"]))

    def controller_pods(self) -> list[dict[str, Any]]:
        """The pods of the newest controller; those of one that an upgrade has deleted may still be there."""
        newest = self.controllers()[-1]["metadata"]["name"]
        return [pod for pod in self.items("pods", "controller") if pod["metadata"]["labels"][JOB_NAME] == newest]

    def in_the_controllers_pod(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        controller = self.controllers()[-1]["metadata"]["name"]
        return self.run("kubectl", "exec", f"job/{controller}", "--", *command, check=check)

    def outcome(self) -> str:
        """The termination message of the newest controller."""
        for pod in self.controller_pods():
            for status in pod["status"].get("containerStatuses", []):
                if message := status["state"].get("terminated", {}).get("message"):
                    return str(message)
        return ""

    def wait_for_end(self, seconds: float, how: str = "Complete") -> None:
        wait_until("the release ends", self.has_ended, seconds, every=2)
        assert self.has_ended() == how, self.log()

    def log(self) -> str:
        chosen = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component=controller"
        return self.kubectl("logs", "-l", chosen, "--tail=-1", check=False)

    def sql(self, query: str) -> list[str]:
        """Query the database; retry if it is down or the answer was lost, since an exec may drop its output."""
        ask = ("exec", self.database, "--", "psql", "-U", "csi", "-v", "ON_ERROR_STOP=1", "-tAc")
        ended = f"{query}; select 'end'"
        text = wait_until(
            f"the database answers {query}",
            lambda: (output := self.kubectl(*ask, ended, check=False)).endswith("end\n") and output,
            120,
        )
        return [line for line in text.splitlines()[:-1] if line]

    def trials(self) -> Counter[str]:
        """Number of trials by state."""
        return Counter(self.sql(f"select state from {OF_SEARCH}"))

    def num_finished(self) -> int:
        states = self.trials()
        return states["COMPLETE"] + states["PRUNED"]

    def check_exact(self, num_trials: int) -> None:
        """Check that every trial is there once, finished, with each of its epochs once."""
        assert self.num_finished() == num_trials
        assert sum(self.trials().values()) == num_trials
        (numbers,) = self.sql(f"select count(distinct number) || ' ' || max(number) from {OF_SEARCH}")
        assert numbers == f"{num_trials} {num_trials - 1}"
        epochs = "select trial_id from trial_intermediate_values group by trial_id having count(*) <> max(step) + 1"
        assert self.sql(epochs) == []


@contextmanager
def jobs_with_pods(release: Release) -> Iterator[list[set[str]]]:
    """Note again and again which Jobs of the search have pods that have not ended."""
    seen: list[set[str]] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.5):
            with suppress(AssertionError, subprocess.TimeoutExpired):  # the API server may be away
                pods = release.items("pods", "search")
                active = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
                seen.append({pod["metadata"]["labels"][JOB_NAME] for pod in active})

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
