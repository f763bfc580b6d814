"""Settings of the study."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.config import JsonDict

from csi_job.errors import ConfigurationError
from csi_job.settings import MAX_SEED, Section

Sampler = Literal["tpe", "tpe_per_cost", "random", "cmaes", "auto"]
Pruner = Literal["median", "successive_halving", "asha", "hyperband", "none", "auto"]
AUTO: Final = {
    "f1": {"sampler": "tpe_per_cost", "pruner": "none"},
    "f1-and-cost": {"sampler": "tpe", "pruner": "median"},
}
"""What `auto` stands for, by objective: what replays of one objective show best (`docs/search.md`)."""
ONE_OBJECTIVE_SAMPLERS: Final = ("cmaes", "tpe_per_cost")
PAUSING: Final = ("asha", "hyperband")
ObjectiveName = Literal["f1", "f1-and-cost"]
ALLOWED_NAMES: Final = "up to 100 characters without slashes, not beginning with a dot"
MAX_WORKERS: Final = 256  # more than any machine has GPUs; each takes the memory of a PyTorch
MAX_NAME_BYTES = 200  # of 255, to which file names add e.g. `_optimization_history.html`


_ONE_OBJECTIVE: JsonDict = {
    "if": {
        "anyOf": [
            {"properties": {"sampler": {"enum": [*ONE_OBJECTIVE_SAMPLERS]}}, "required": ["sampler"]},
            {"properties": {"pruner": {"enum": [*PAUSING]}}, "required": ["pruner"]},
        ]
    },
    "then": {"properties": {"objective": {"const": "f1"}}},
}


class StudySettings(Section):
    """What is optimised, for how long, and with which sampler and pruner."""

    model_config = ConfigDict(json_schema_extra=_ONE_OBJECTIVE)

    name: str = Field(
        default="csi_optimization", min_length=1, max_length=100, pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$"
    )
    """Name of the study. A search continues it if it exists."""
    num_trials: int = Field(default=50, ge=1)
    """Total number of finished trials in the study, across all workers."""
    max_epochs: int = Field(default=30, ge=1)
    """Maximum number of epochs per trial."""
    sampler: Sampler = "tpe"
    """Algorithm that suggests the next hyperparameters. `tpe_per_cost` is TPE that prefers cheap architectures: it
    maximises the expected improvement per square root of GFLOPs. `cmaes` learns only from complete trials, not from
    pruned or paused ones. `auto` is `tpe_per_cost`, or `tpe` with two objectives."""
    num_startup_trials: int = Field(default=10, ge=0)
    """Random trials before TPE or CMA-ES starts to model the results."""
    pruner: Pruner = "median"
    """Rule that stops unpromising trials early; `asha` and `hyperband` pause them, and resume them as others fall
    behind. `auto` is `none`, or `median` with two objectives."""
    reduction_factor: int = Field(default=2, ge=2)
    """With `asha` and `hyperband`: one of this many trials continues at each rung, and rungs lie this factor apart."""
    min_resource: int = Field(default=3, ge=1)
    """With `asha` and `hyperband`: epochs of the first rung."""
    max_epochs_total: int | None = Field(default=None, ge=1)
    """Total number of epochs over all trials, after which no trial starts; those that are running are finished."""
    objective: ObjectiveName = "f1"
    """`f1`: maximise validation F1; `f1-and-cost`: also minimise GFLOPs per image."""
    seed: int = Field(default=42, ge=0, le=MAX_SEED)
    """Random seed; each trial derives its own from it."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds after which this worker stops starting new trials."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts in a row without a finished epoch after which a trial fails."""
    max_failed_trials: int = Field(default=10, ge=0)
    """Number of failed trials allowed; one more stops the study with an error."""
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=MAX_WORKERS)] = "auto"
    """Worker processes, each running one trial at a time: `auto` is one per GPU, or a single one on the CPU. A number
    may not exceed that of the GPUs; on the CPU, that many workers share the cores."""
    report_every: int = Field(default=5, ge=1)
    """Refresh the report in `models/hyperopt/` after every this many trials of a worker, but at most once a minute."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_auto(cls, given: object) -> object:
        """Put in place of `auto` what it stands for, so that each trial and the report show that."""
        if not isinstance(given, Mapping):
            return given
        resolved = AUTO.get(str(given.get("objective", "f1")), {})
        return {name: resolved.get(name, value) if value == "auto" else value for name, value in given.items()}

    @field_validator("workers", mode="before")
    @classmethod
    def _is_auto_or_a_number(cls, workers: object) -> object:
        if workers == "auto" or (str(workers).isdecimal() and 1 <= int(str(workers)) <= MAX_WORKERS):
            return workers
        raise ValueError(f"must be auto or a whole number from 1 to {MAX_WORKERS}, got {workers!r}")

    @field_validator("name")
    @classmethod
    def _fits_a_file_name(cls, name: str) -> str:
        if len(name.encode()) > MAX_NAME_BYTES:
            message = f"the name must fit into a file name: at most {MAX_NAME_BYTES} bytes, got {len(name.encode())}"
            raise ValueError(message)
        return name

    def num_workers(self, num_gpus: int) -> int:
        """Return how many workers a process with these GPUs starts.

        Raises:
            ConfigurationError: more than GPUs. Two trainings on one GPU take memory from each other, so that one may be
                recorded as infeasible.
        """
        if self.workers == "auto":
            return max(num_gpus, 1)
        if 0 < num_gpus < self.workers:
            few = "one GPU is" if num_gpus == 1 else f"{num_gpus} GPUs are"
            message = f"study.workers: {few} visible"
            raise ConfigurationError(message, got=self.workers, allowed=f"auto, or up to {num_gpus}")
        return self.workers


def can_be_ours(name: str) -> bool:
    """Return whether a csi-job study can have this name."""
    try:
        StudySettings(name=name)
    except ValidationError:
        return False
    return True


def checked_name(name: str) -> str:
    """Return the name; raise `ConfigurationError` if no csi-job study can have it."""
    if not can_be_ours(name):
        raise ConfigurationError("a study cannot have this name", got=name, allowed=ALLOWED_NAMES)
    return name


def check_objective(settings: StudySettings) -> None:
    """Raise `ConfigurationError` for a sampler or pruner that cannot handle two objectives."""
    if settings.objective == "f1":
        return
    if settings.sampler in ONE_OBJECTIVE_SAMPLERS:
        message = "this sampler handles one objective only, so it cannot search f1-and-cost"
        allowed = [name for name in get_args(Sampler) if name not in ONE_OBJECTIVE_SAMPLERS]
        raise ConfigurationError(message, got=settings.sampler, allowed=allowed)
    if settings.pruner in PAUSING:
        message = "this pruner compares one objective only, so it cannot search f1-and-cost"
        allowed = [name for name in get_args(Pruner) if name not in PAUSING]
        raise ConfigurationError(message, got=settings.pruner, allowed=allowed)
