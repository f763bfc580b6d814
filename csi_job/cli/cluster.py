"""`csi-job cluster run | scale | check | fetch`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csi_job.cli.options import LoadedSettings, with_settings

if TYPE_CHECKING:
    from collections.abc import Callable

RELEASE = click.option("--release", metavar="NAME", help="The release; default: the only one of the namespace.")
NAMESPACE = click.option("--namespace", "-n", metavar="NAME", help="Default: the kubeconfig's, or the pod's own.")


def of_release(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name a release."""
    return RELEASE(NAMESPACE(command))


@click.group()
def cluster() -> None:
    """Run the stages on Kubernetes, scale and check them, fetch their results.

    `helm install` does all of it by itself; `run` and `check` are what its pods call.
    """


@cluster.command()
@with_settings("study.name")
@click.option("--stages", required=True, metavar="NAME", help="ConfigMap of the stages' Jobs.")
@click.option("--digest", required=True, help="Digest of what this controller acts on.")
@click.option("--namespace", metavar="NAME", help="Default: the pod's own.")
@click.option("--missing-seconds", type=float, default=120.0, show_default=True, help="Wait for claims and images.")
@click.option("--max-rounds", type=int, default=10, show_default=True, help="Times the search is made anew.")
@click.option("--budget-hours", type=float, help="Hours after which the search ends.")
@click.option("--budget-gpu-hours", type=float, help="GPU hours after which the search ends.")
def run(loaded: LoadedSettings, *, namespace: str | None, **given: Any) -> None:
    """Be the controller: make the stages one after the other, to the final model."""
    from csi_job.cluster.api import Cluster
    from csi_job.cluster.budget import Budget
    from csi_job.cluster.controller import ControllerOptions, run_controller, tell_outcome

    options = ControllerOptions(
        stages=given["stages"],
        digest=given["digest"],
        missing_s=given["missing_seconds"],
        max_rounds=given["max_rounds"],
        budget=Budget(given["budget_hours"], given["budget_gpu_hours"]),
    )
    outcome = run_controller(Cluster(namespace), options, loaded.settings)
    tell_outcome(outcome)
    click.echo(outcome)


@cluster.command()
@click.argument("num_pods", type=click.IntRange(min=0), metavar="N")
@of_release
def scale(num_pods: int, release: str | None, namespace: str | None) -> None:
    """Give the search N pods; 0 suspends it."""
    from csi_job.cluster.api import Cluster
    from csi_job.cluster.scale import scale_search

    click.echo(scale_search(Cluster(namespace), release, num_pods))


@cluster.command()
@with_settings("storage.url")
@click.option(
    "--num-pods",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    envvar="NUM_PODS",
    help="The search has these.",
)
@click.option("--num-gpus", type=click.IntRange(min=0), default=0, show_default=True, help="GPUs of each of them.")
@click.option("--gpu-resource", default="nvidia.com/gpu", show_default=True, help="Name of the GPU resource.")
@click.option("--database-secret", metavar="NAME/KEY", default="", help="Where the database's password is from.")
@click.option("--wandb-secret", metavar="NAME/KEY", default="", help="Where the key of Weights & Biases is from.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    envvar="WAIT_S",
    help="Wait for a database that is away, and alone at fault.",
)
@of_release
def check(loaded: LoadedSettings, *, num_pods: int, release: str | None, namespace: str | None, **given: Any) -> None:
    """Find what is wrong before a GPU is used.

    In a pod (`helm test` runs one): volumes, data, database, Secrets, memory. From a laptop, or where a release or
    namespace is named: the claims and Secrets of a release, quotas, nodes, as the API server shows them.
    """
    from csi_job.cluster.api import Cluster
    from csi_job.cluster.pod_check import IN_A_POD, Wanted, check_pod
    from csi_job.cluster.release_check import check_release

    if IN_A_POD in os.environ and not (release or namespace):
        wait_s = given.pop("wait")
        lines = check_pod(loaded.settings, Wanted(num_pods, **given), wait_s)
    else:
        lines = check_release(Cluster(namespace), release)
    for line in lines:
        click.echo(line)


@cluster.command()
@click.argument("destination", type=click.Path(file_okay=False, path_type=Path))
@of_release
def fetch(destination: Path, release: str | None, namespace: str | None) -> None:
    """Copy models and reports from the release's volume into DESTINATION."""
    from csi_job.cluster.api import Cluster
    from csi_job.cluster.fetch import fetch_results

    for path in fetch_results(Cluster(namespace), release, destination):
        click.echo(path)
