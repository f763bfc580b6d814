"""The chart's values as models, from which `helm/values.schema.json` is made: `python -m csi_job.cluster.values`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from csi_job.config import Settings

Quantity = Annotated[str | int | float, Field(pattern=r"^[0-9.]+([eE][0-9]+|m|k|[KMGTPE]i?)?$")]
Name = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", max_length=253)]
Key = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
Labels = dict[str, str]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
# What the chart itself knows: the volumes' paths and the database.
SET_BY_CHART: Final = ("work", "radiographs.labels", "radiographs.images", "storage.url", "storage.password",
                       "storage.password_file")  # fmt: skip


class Values(BaseModel):
    """A part of the values: what it does not name is refused."""

    model_config = ConfigDict(extra="forbid")


class Global(Values):
    imageRegistry: str  # noqa: N815 - Helm's spelling, as in all that follows
    imagePullSecrets: list[Name]  # noqa: N815


class Image(Values):
    repository: Annotated[str, Field(min_length=1)]
    tag: str = ""
    digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""


class OwnImage(Image):
    pullPolicy: Literal["Always", "IfNotPresent", "Never"]  # noqa: N815


class Data(Values):
    existingClaim: Name  # noqa: N815
    labels: Annotated[str, Field(min_length=1, pattern=r"^[^/]")]
    images: Annotated[str, Field(min_length=1, pattern=r"^[^/]")]


class Demo(Values):
    enabled: bool
    numImages: Annotated[int, Field(ge=30, le=10_000)]  # noqa: N815
    seed: Natural


class Claim(Values):
    size: Quantity
    storageClass: Name  # noqa: N815


class Work(Claim):
    existingClaim: Name  # noqa: N815
    accessMode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]  # noqa: N815


class Resources(Values):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class Controller(Values):
    resources: Resources
    missingSeconds: Natural  # noqa: N815
    maxRounds: Positive  # noqa: N815
    apiServerCidr: str  # noqa: N815
    apiServerPorts: list[Port]  # noqa: N815


class Stage(Values):
    gpus: Natural
    resources: Resources
    backoffLimit: Natural  # noqa: N815
    deadlineSeconds: Positive | None = None  # noqa: N815
    nodeSelector: Labels = {}  # noqa: N815
    tolerations: list[dict[str, Any]] = []
    affinity: dict[str, Any] = {}
    topologySpreadConstraints: list[dict[str, Any]] = []  # noqa: N815
    priorityClassName: Name = ""  # noqa: N815
    runtimeClassName: Name = ""  # noqa: N815
    env: list[dict[str, Any]] = []


class Search(Stage):
    parallelism: Annotated[int, Field(ge=0, le=1000)]


class Budget(Values):
    hours: Annotated[float, Field(gt=0)] | None = None
    gpuHours: Annotated[float, Field(gt=0)] | None = None  # noqa: N815


class External(Values):
    url: Annotated[str, Field(pattern=r"^(postgresql(\+psycopg2)?://[^:@/]+@.+)?$")]
    cidr: str
    port: Port


class Database(Claim):
    bundled: bool
    image: Image
    maxConnections: Annotated[int, Field(ge=10)]  # noqa: N815
    resources: Resources
    existingSecret: Name  # noqa: N815
    secretKey: Key  # noqa: N815
    external: External


class Wandb(Values):
    existingSecret: Name  # noqa: N815
    secretKey: Key  # noqa: N815


class Kueue(Values):
    queueName: Name  # noqa: N815


class Dashboard(Values):
    enabled: bool
    image: Image
    resources: Resources


class NetworkPolicy(Values):
    enabled: bool
    extraEgress: list[dict[str, Any]]  # noqa: N815


class ServiceAccount(Values):
    annotations: Labels


class ChartValues(Values):
    """Everything that `helm install` takes, but `job`, which is the settings tree itself."""

    global_: Annotated[Global, Field(alias="global")]
    image: OwnImage
    data: Data
    demo: Demo
    work: Work
    controller: Controller
    cache: Stage
    search: Search
    final: Stage
    budget: Budget
    gpuResource: Key | Annotated[str, Field(pattern=r"^[-a-z0-9.]+/[-._a-zA-Z0-9]+$")]  # noqa: N815
    shmSize: Quantity  # noqa: N815
    tmpSize: Quantity  # noqa: N815
    terminationGracePeriodSeconds: Natural  # noqa: N815
    ttlSecondsAfterFinished: Natural | None = None  # noqa: N815
    database: Database
    wandb: Wandb
    kueue: Kueue
    dashboard: Dashboard
    networkPolicy: NetworkPolicy  # noqa: N815
    serviceAccount: ServiceAccount  # noqa: N815
    podSecurityContext: dict[str, Any]  # noqa: N815
    securityContext: dict[str, Any]  # noqa: N815
    databaseUser: Positive | None = None  # noqa: N815
    commonLabels: Labels  # noqa: N815
    podAnnotations: Labels  # noqa: N815
    env: list[dict[str, Any]]
    volumes: list[dict[str, Any]]
    volumeMounts: list[dict[str, Any]]  # noqa: N815
    fullnameOverride: Annotated[str, Field(pattern=r"^([a-z]([-a-z0-9]*[a-z0-9])?)?$")]  # noqa: N815


def values_schema() -> dict[str, Any]:
    """Return the JSON schema of the chart's values."""
    whole = create_model("WholeValues", __base__=ChartValues, job=(Settings, ...))
    schema = whole.model_json_schema()
    for path in SET_BY_CHART:
        _drop(schema, path)
    _strip(schema)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **json.loads(json.dumps(schema).replace("$defs", "definitions")),
    }


def _drop(schema: dict[str, Any], path: str) -> None:
    """Remove a setting from the schema of `job`."""
    section = schema["$defs"]["Settings"]
    *parents, name = path.split(".")
    for parent in parents:
        section = schema["$defs"][section["properties"][parent]["$ref"].rpartition("/")[2]]
    del section["properties"][name]


def _strip(part: Any) -> None:
    """Remove titles and defaults, which say nothing that names and values.yaml do not."""
    if isinstance(part, dict):
        for key in ("title", "default"):
            if not isinstance(part.get(key), dict) or "type" not in part[key]:
                part.pop(key, None)
        for value in part.values():
            _strip(value)
    elif isinstance(part, list):
        for value in part:
            _strip(value)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(values_schema(), indent=1, ensure_ascii=False) + "\n")
