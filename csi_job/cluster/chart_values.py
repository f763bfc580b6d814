"""The chart's values as models; `python -m csi_job.cluster.chart_values` prints `helm/values.schema.json`."""

import json
import sys
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.alias_generators import to_camel

from csi_job.config import Settings

# The pattern belongs to the text alone: pydantic leaves out of the schema what does not hold for a whole union.
QuantityText = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$")]
Quantity = QuantityText | Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", max_length=253)]
Key = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
Label = Annotated[str, Field(pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$", max_length=63)]
Labels = dict[str, Label]
Annotations = dict[str, str]
Objects = list[dict[str, Any]]
Block = Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]+/[0-9]+$")]
Blocks = Block | Annotated[list[Block], Field(min_length=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
# The chart sets these itself: mount paths and the database.
SET_BY_CHART: Final = ("work", "radiographs.labels", "radiographs.images", "storage.url", "storage.password",
                       "storage.password_file", "storage.create_tables", "tracking.wandb_api_key_file")  # fmt: skip


class ValuesSection(BaseModel):
    """A section of the values; unknown keys are rejected.

    A field that came after the first version has a default, since `helm upgrade --reuse-values` gives what values there
    were then. The templates have the same one.
    """

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)  # Helm's spelling


class GlobalValues(ValuesSection):
    """Registry and pull secrets of every image; a chart that depends on this one may have more for its other parts."""

    model_config = ConfigDict(extra="allow")

    image_registry: str
    image_pull_secrets: list[Name]


class ImageValues(ValuesSection):
    """Where to find an image."""

    repository: Annotated[str, Field(min_length=1)]
    tag: Annotated[str, Field(pattern=r"^([A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?$")] = ""
    digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""


class OwnImageValues(ImageValues):
    """The image of csi-job."""

    pull_policy: Literal["", "Always", "IfNotPresent", "Never"]


class DataValues(ValuesSection):
    """The volume claim that holds the radiographs."""

    existing_claim: Name
    labels: Annotated[str, Field(min_length=1, pattern=r"^[^/]")]
    images: Annotated[str, Field(min_length=1, pattern=r"^[^/]")]


class DemoValues(ValuesSection):
    """Phantoms generated in the cluster."""

    enabled: bool
    num_images: Annotated[int, Field(ge=30, le=10_000)]
    seed: Natural


class ClaimValues(ValuesSection):
    """A volume claim that the chart creates."""

    size: Quantity
    storage_class: Name


class WorkValues(ClaimValues):
    """The volume claim for all results."""

    existing_claim: Name
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]


class ResourcesValues(ValuesSection):
    """Requests and limits of a container."""

    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}
    claims: Objects = []


class TolerationValues(ValuesSection):
    """A taint on whose nodes pods may run."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    toleration_seconds: int | None = None


class AffinityValues(ValuesSection):
    """Which nodes and which other pods attract or repel pods."""

    node_affinity: dict[str, Any] = {}
    pod_affinity: dict[str, Any] = {}
    pod_anti_affinity: dict[str, Any] = {}


class SpreadValues(ValuesSection):
    """How pods spread over nodes."""

    model_config = ConfigDict(extra="allow")

    max_skew: Positive
    topology_key: Annotated[str, Field(min_length=1)]
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]


class VariableValues(ValuesSection):
    """An environment variable."""

    name: Annotated[str, Field(pattern=r"^[^=]+$")]
    value: str = ""
    value_from: dict[str, Any] = {}


class PlacementValues(ValuesSection):
    """Fields of a pod that decide where it runs, with which priority, runtime and devices."""

    node_selector: Labels = {}
    tolerations: list[TolerationValues] = []
    affinity: AffinityValues = AffinityValues()
    topology_spread_constraints: list[SpreadValues] = []
    priority_class_name: Name = ""
    runtime_class_name: Name = ""
    scheduler_name: Name = ""
    resource_claims: Objects = []


class ComponentValues(PlacementValues):
    """Pods of the bundled database or of csi-job."""

    annotations: Annotations = {}
    labels: Labels = {}


class ContainerValues(ValuesSection):
    """What runs beside csi-job, and with which variables."""

    env: list[VariableValues] = []
    env_from: Objects = []
    init_containers: Objects = []
    sidecars: Objects = []


class ServiceAccountValues(ValuesSection):
    """The account that pods run under."""

    create: bool = True
    name: Name = ""
    annotations: Annotations = {}


class ControllerValues(ComponentValues, ContainerValues):
    """The pod that creates the stages; those of check and fetch run on the same nodes."""

    service_account: ServiceAccountValues = ServiceAccountValues()
    resources: ResourcesValues
    missing_seconds: Natural
    max_rounds: Positive
    api_server_cidr: Blocks
    api_server_ports: Annotated[list[Port], Field(min_length=1)]


class StageValues(ComponentValues, ContainerValues):
    """The pods of one stage."""

    gpus: Natural
    resources: ResourcesValues
    backoff_limit: Natural
    deadline_seconds: Positive | None = None


class CacheValues(StageValues):
    """The pods that decode."""

    parallelism: Annotated[int, Field(ge=1, le=1000)] = 1


class SearchValues(StageValues):
    """The pods of the search."""

    parallelism: Annotated[int, Field(ge=0, le=1000)]


class BudgetValues(ValuesSection):
    """Limits of the search over all its pods."""

    hours: Annotated[float, Field(gt=0)] | None = None
    gpu_hours: Annotated[float, Field(gt=0)] | None = None


class ExternalDatabaseValues(ValuesSection):
    """A database outside the release."""

    url: Annotated[str, Field(pattern=r"^(postgresql(\+psycopg2)?://[^:@/]+@.+)?$")]
    cidr: Blocks
    port: Port
    ssl_mode: Literal["", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = ""
    ca_secret: Name = ""
    ca_key: Key = "ca.crt"


class DatabaseValues(ClaimValues, ComponentValues):
    """The database of the study."""

    bundled: bool
    image: ImageValues
    max_connections: Annotated[int, Field(ge=10)]
    resources: ResourcesValues
    existing_secret: Name
    secret_key: Key
    pod_disruption_budget: dict[str, Any] = {}
    external: ExternalDatabaseValues


class WandbValues(ValuesSection):
    """The Weights & Biases API key."""

    existing_secret: Name
    secret_key: Key


class KueueValues(ValuesSection):
    """The queue for the stages."""

    queue_name: Name


class PodMonitorValues(ValuesSection):
    """A PodMonitor of the Prometheus Operator."""

    enabled: bool
    labels: Labels
    interval: Annotated[str, Field(pattern=r"^[0-9]+(ms|s|m|h)$")]


class GrafanaValues(ValuesSection):
    """A ConfigMap with a dashboard for Grafana."""

    enabled: bool
    labels: Labels


class MetricsValues(ValuesSection):
    """The controller's metrics for Prometheus."""

    enabled: bool
    port: Port
    from_namespaces: Labels
    pod_monitor: PodMonitorValues
    dashboard: GrafanaValues


class DashboardValues(ComponentValues, ContainerValues):
    """optuna-dashboard."""

    enabled: bool
    resources: ResourcesValues


class NetworkPolicyValues(ValuesSection):
    """What the pods may connect to."""

    enabled: bool
    extra_egress: Objects


class RbacValues(ValuesSection):
    """The controller's rights."""

    create: bool = True


class ChartValues(PlacementValues, ContainerValues):
    """All values of the chart except `job`, which is the settings tree."""

    global_: Annotated[GlobalValues, Field(alias="global")]
    image: OwnImageValues
    data: DataValues
    demo: DemoValues
    work: WorkValues
    controller: ControllerValues
    cache: CacheValues
    search: SearchValues
    final: StageValues
    budget: BudgetValues
    log_format: Literal["text", "json"] = "json"
    gpu_resource: Key | Annotated[str, Field(pattern=r"^[-a-z0-9.]+/[-._a-zA-Z0-9]+$")]
    shm_size: Quantity
    tmp_size: Quantity
    termination_grace_period_seconds: Natural
    ttl_seconds_after_finished: Positive | None = None
    database: DatabaseValues
    wandb: WandbValues
    kueue: KueueValues
    dashboard: DashboardValues
    metrics: MetricsValues | None = None
    network_policy: NetworkPolicyValues
    rbac: RbacValues = RbacValues()
    service_account: ServiceAccountValues
    pod_security_context: dict[str, Any]
    security_context: dict[str, Any]
    database_user: Positive | None = None
    common_labels: Labels
    pod_annotations: Annotations
    volumes: Objects
    volume_mounts: Objects
    extra_objects: list[dict[str, Any] | str] = []
    fullname_override: Annotated[str, Field(pattern=r"^([a-z]([-a-z0-9]*[a-z0-9])?)?$")]


def values_schema() -> dict[str, Any]:
    """Return the JSON schema of all values, including `job`."""
    # A chart that depends on this one may have `condition: csi-job.enabled`.
    model = create_model("AllValues", __base__=ChartValues, job=(Settings, ...), enabled=(bool, True))
    schema = model.model_json_schema()
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
    """Remove titles and defaults, which add nothing to names and values.yaml."""
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
