import pytest
from click.testing import CliRunner

from csi_job.cli.cluster import cluster
from csi_job.cluster.pod_check import IN_A_POD, Requirements


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ([], "pod\nstudy csi_optimization: new"),
        (["--release", "r"], "release r of None"),
        (["-n", "there"], "release None of there"),
        (["--release", "r", "-n", "there"], "release r of there"),
    ],
)
def test_a_check_in_a_pod_examines_the_release_that_is_named(arguments, output, monkeypatch):
    monkeypatch.setenv(IN_A_POD, "10.0.0.1")
    monkeypatch.setattr("csi_job.cluster.api.Cluster", lambda namespace: namespace)
    monkeypatch.setattr("csi_job.cluster.pod_check.check_pod", lambda *_: ["pod"])
    monkeypatch.setattr(
        "csi_job.cluster.release_check.check_release", lambda where, name: [f"release {name} of {where}"]
    )
    result = CliRunner().invoke(cluster, ["check", *arguments], catch_exceptions=False)
    assert result.output == f"{output}\n"


def test_a_check_passes_on_the_charts_options(monkeypatch):
    monkeypatch.setenv(IN_A_POD, "10.0.0.1")
    received = []
    monkeypatch.setattr("csi_job.cluster.pod_check.check_pod", lambda *given: received.extend(given[1:]) or [])
    options = ["--num-pods=3", "--num-gpus=2", "--gpu-resource=a/b", "--database-secret=s/k", "--wandb-secret=w/k"]
    CliRunner().invoke(cluster, ["check", *options, "--wait=7"], catch_exceptions=False)
    assert received == [Requirements(3, 2, "a/b", "s/k", "w/k"), 7.0]
