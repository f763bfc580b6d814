"""`csi-job cluster run | scale | check | fetch`."""

import os
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import click

from csi_job.cli.options import PathType, SecondsType, with_settings
from csi_job.config import LoadedSettings
from csi_job.logs import announced

RELEASE = click.option("--release", metavar="NAME", help="Helm release.  [default: the only one in the namespace]")
NAMESPACE = click.option(
    "--namespace", "-n", metavar="NAME", help="Namespace.  [default: the kubeconfig's or the pod's]"
)


def of_release(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that identify a release."""
    return RELEASE(NAMESPACE(command))


def secret_option(flag: str, content: str) -> Callable[..., Any]:
    """Return the option that names a Secret, so that an error can name it too."""
    text = f"Secret and key of the {content}."
    return click.option(flag, metavar="NAME/KEY", default="", show_default=False, help=text)


@click.group()
def cluster() -> None:
    """Work with a release on Kubernetes: check it, scale the search, fetch the results.

    `helm install` starts everything; `run` is what its controller pod executes.
    """


@cluster.command()
@with_settings("study.name")
@click.option("--stages", required=True, metavar="NAME", help="ConfigMap with the Jobs of the stages.")
@click.option("--digest", required=True, help="Digest of this controller's configuration.")
@click.option("--namespace", metavar="NAME", help="Namespace.  [default: the pod's]")
@click.option("--missing-seconds", "missing_s", default=120.0, help="Seconds to wait for what is missing or refused.")
@click.option("--max-rounds", default=10, help="How often to recreate the search Job.")
@click.option("--budget-hours", type=float, help="Hours after which to end the search.")
@click.option("--metrics-port", type=int, help="Port on which to serve metrics for Prometheus.  [default: none]")
@click.option("--budget-gpu-hours", type=float, help="GPU hours after which to end the search.")
def run(
    loaded: LoadedSettings,
    *,
    namespace: str | None,
    budget_hours: float | None,
    budget_gpu_hours: float | None,
    **options: Any,
) -> None:
    """Run the controller, which creates the Jobs of the stages in order."""
    from csi_job.cluster.api import Cluster
    from csi_job.cluster.budget import Budget
    from csi_job.cluster.controller import ControllerOptions, run_controller, write_termination_message

    budget = Budget(budget_hours, budget_gpu_hours)
    outcome = run_controller(Cluster(namespace), ControllerOptions(**options, budget=budget), loaded.settings)
    write_termination_message(outcome)
    click.echo(outcome)


@cluster.command()
@click.argument("num_pods", type=click.IntRange(min=0), metavar="N")
@of_release
def scale(num_pods: int, release: str | None, namespace: str | None) -> None:
    """Scale the search to N pods; 0 suspends it."""
    from csi_job.cluster.api import Cluster
    from csi_job.cluster.scale import scale_search

    click.echo(scale_search(Cluster(namespace), release, num_pods))


@cluster.command()
@with_settings("storage.url", check=False)  # its own checks say more
@click.option("--num-pods", type=click.IntRange(min=0), default=1, envvar="NUM_PODS", help="Pods of the search.")
@click.option("--num-gpus", type=click.IntRange(min=0), default=0, help="GPUs per pod.")
@click.option("--gpu-resource", default="nvidia.com/gpu", help="Name of the Kubernetes GPU resource.")
@secret_option("--database-secret", "database password")
@secret_option("--wandb-secret", "Weights & Biases API key")
@click.option("--wait", "wait_s", type=SecondsType(0), default=0.0, metavar="SECONDS", envvar="WAIT_S",
    help="Seconds to wait for the database if nothing else is wrong.")  # fmt: skip
@of_release
def check(
    loaded: LoadedSettings, *, wait_s: float, release: str | None, namespace: str | None, **requirements: Any
) -> None:
    """Check for problems before any GPU is used.

    In a pod (as in `helm test`): volumes, data, database, Secrets and memory. From a laptop, or with --release or
    --namespace: the release's volume claims, Secrets, quotas and nodes as the API server sees them, and whether it
    would admit each stage's Job and pod.
    """
    from csi_job.cluster.api import Cluster
    from csi_job.cluster.pod_check import IN_A_POD, Requirements, check_pod, check_study
    from csi_job.cluster.release_check import check_release

    is_pod = IN_A_POD in os.environ and not (release or namespace)
    lines: Iterable[str] = (
        chain(check_pod(loaded.settings, Requirements(**requirements), wait_s), map(check_study, [loaded]))
        if is_pod
        else check_release(Cluster(namespace), release)
    )
    with announced("checking volumes, data, database and Secrets" if is_pod else "asking the API server"):
        for line in lines:
            click.echo(line)


@cluster.command()
@click.argument("destination", type=PathType(file_okay=False))
@of_release
def fetch(destination: Path, release: str | None, namespace: str | None) -> None:
    """Copy the release's models and reports to DESTINATION."""
    from csi_job.cluster.api import Cluster
    from csi_job.cluster.fetch import fetch_results

    for path in fetch_results(Cluster(namespace), release, destination):
        click.echo(path)
