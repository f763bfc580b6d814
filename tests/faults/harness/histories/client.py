"""A client of two studies: it makes, uses and deletes them at random, and keeps a journal of it."""

import pickle
import random
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from csi_job.errors import ConfigurationError, LeaseLostError, StorageUnavailableError
from csi_job.storage import lease as lease_module
from csi_job.storage.attributes import FIXED_PARAMS, MIGRATED_FROM, TARGET, UID
from csi_job.storage.claim import Claim
from csi_job.storage.lease import Lease, new_token
from csi_job.storage.storage import StudyStorage, open_storage
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.definition import Definition, load_study
from csi_job.study.studies import delete_study, enqueue_trial
from csi_job.study.target import set_target
from csi_job.transfer.copy import copy_study
from csi_job.transfer.migrate import migrate_study
from tests.faults.harness.histories.commit_faults import CommitFaults
from tests.faults.harness.histories.journal import Journal
from tests.faults.harness.histories.model import DELETED, FULL, LOST, REFUSED
from tests.support.processes import preload
from tests.support.studies import BASELINE, CACHE_KEY, SPACE, claim, define, storage_settings, toy_settings, toy_space

preload("tests.faults.harness.histories.client")
NAMES: Final = ("red", "blue")
TARGET_OF_NEW, MAX_ATTEMPTS, NUM_EPOCHS = 8, 2, 2
X: Final = "unknown_weight"
DISTRIBUTION: Final = FloatDistribution(0, 1)
ACTIONS, WEIGHTS, UNLUCKY = ("continue", "sleep", "release", "abandon"), (85, 2, 5, 8), (45, 2, 5, 48)
"""What a worker may do before an epoch, and how often, also of every fourth trial, which loses attempts in a row."""
PATIENCE: Final = 10
"""Leases without progress after which a study is stuck."""
# How often a client does what, besides running trials.
OFTEN: Final = {"run": 25, "enqueue": 8, "set_target": 3, "add": 4, "copy": 3, "migrate": 2, "reopen": 3, "delete": 4}


class UnknownError(Exception):
    """The answer did not come."""


@dataclass
class Handle:
    """A study as a client has opened it."""

    study: optuna.Study
    uid: str

    @property
    def name(self) -> str:
        return self.study.study_name


def run(arguments: dict[str, Any]) -> None:
    client, seed = arguments["client"], arguments["seed"]
    if arguments["own_host"]:
        lease_module._boot_and_pid_namespace = lambda: (f"boot of {client}", "pid:[1]")
    folder = Path(arguments["work"])
    CommitFaults(seed, arguments["chance"], folder / "clock").install()
    journal = Journal(folder, client)
    try:
        settings = storage_settings(arguments["url"], lease_s=arguments["lease_s"], outage_s=60.0, connect_s=60.0)
        storage = open_storage(settings, folder, create=True)
        Client(journal, client, storage, folder, random.Random(seed)).work(only_finish=arguments["only_finish"])
    except Exception:
        journal.note(traceback.format_exc())
        raise


class Client:
    """Does random operations, one at a time."""

    def __init__(
        self, journal: Journal, client: str, storage: StudyStorage, folder: Path, draws: random.Random
    ) -> None:
        self.journal, self.client, self.storage, self.folder, self.draws = journal, client, storage, folder, draws
        self.apart: StudyStorage = pickle.loads(pickle.dumps(storage))
        """For copies and migrations, which are separate commands: they open studies by name again."""
        self.handles: dict[str, Handle] = {}
        self.count = 0

    def work(self, *, only_finish: bool) -> None:
        """Do operations until this process is killed, or only run the trials that are left."""
        if only_finish:
            for name in NAMES:
                self._finish(name)
            return
        kinds = [kind for kind, often in OFTEN.items() for _ in range(often)]
        while True:
            name = self.draws.choice(NAMES)
            with suppress(UnknownError):
                handle = self.handles.get(name) or self._open(name)
                if handle is not None:
                    getattr(self, f"_{self.draws.choice(kinds)}")(handle)

    def _do(self, kind: str, name: str, arguments: tuple[Any, ...], act: Callable[[], Any]) -> Any:
        """Do an operation, journal it, and return its answer."""
        self.count += 1
        number = self.journal.begin(kind, name, arguments)
        try:
            answer = act()
        except StorageUnavailableError as error:
            raise UnknownError from error
        except LeaseLostError:
            answer = LOST
        except KeyError:
            answer = DELETED
        except ConfigurationError as error:
            if (answer := _refusal(error)) is None:
                self.journal.note(f"{kind} of {name}: {error}")
                self.handles.pop(name, None)
                raise UnknownError from error
        self.journal.end(number, answer)
        if answer == DELETED:
            self.handles.pop(name, None)
        return answer

    # A whole study

    def _open(self, name: str) -> Handle | None:
        """Create the study unless it exists, and read whose it is."""
        study: optuna.Study | None = None

        def make() -> tuple[()]:
            nonlocal study
            try:
                study = define(self.storage, name=name, num_trials=TARGET_OF_NEW)
            except KeyError:  # it was deleted again
                pass
            except ConfigurationError as error:
                if _refusal(error) != DELETED:
                    raise
            return ()

        self._do("define", name, (), make)
        return self._read_uid(name, study) if study is not None else None

    def _read_uid(self, name: str, study: optuna.Study) -> Handle | None:
        answer = self._do("open", name, (), lambda: (study.user_attrs[UID],))
        if answer == DELETED:
            return None
        self.handles[name] = Handle(study, answer[0])
        return self.handles[name]

    def _reopen(self, handle: Handle) -> None:
        self.handles.pop(handle.name)
        self._open(handle.name)

    def _delete(self, handle: Handle) -> None:
        if self.client.startswith("operator"):
            self._do("delete", handle.name, (handle.uid,), lambda: delete_study(handle.study, self.folder) or ())
            self.handles.pop(handle.name, None)  # as a command that ends; an object that it deleted has no uid

    def _copy(self, handle: Handle) -> None:
        new = f"copy-{self.client}-{self.count}"

        def copy() -> tuple[Any, ...]:
            study = copy_study(self.apart, handle.name, self.apart, new)
            return int(study.user_attrs[TARGET]), tuple(map(contents, study.get_trials(deepcopy=False)))

        if self._do("copy", handle.name, (), copy) != DELETED:
            delete_study(load_study(self.apart, new), self.folder)

    def _migrate(self, handle: Handle) -> None:
        settings = toy_settings(name=f"migrated-{self.client}-{self.count}", num_trials=TARGET_OF_NEW)
        definition = Definition.of(settings, toy_space(2.0), BASELINE, cache_key=CACHE_KEY)

        def migrate() -> tuple[Any, ...]:
            migrate_study(self.apart, handle.name, definition)
            trials = load_study(self.apart, settings.name).get_trials(deepcopy=False)
            carried = [trial for trial in trials if MIGRATED_FROM in trial.user_attrs]
            return tuple(sorted((t.user_attrs[MIGRATED_FROM]["trial"], t.params[X], t.value) for t in carried))

        if self._do("migrate", handle.name, (), migrate) != DELETED:
            delete_study(load_study(self.apart, settings.name), self.folder)

    # An open study

    def _set_target(self, handle: Handle) -> None:
        target = self.draws.randint(TARGET_OF_NEW // 2, 2 * TARGET_OF_NEW)
        act = lambda: (set_target(handle.study, num_trials=target),)  # noqa: E731
        self._do("set_target", handle.name, (handle.uid, target), act)

    def _add(self, handle: Handle) -> None:
        count, token = self.draws.randint(1, 3), self.draws.choice([new_token(), ""])
        act = lambda: (set_target(handle.study, more_trials=count, token=token),)  # noqa: E731
        for _ in range(self.draws.randint(1, 2)):  # also as a command that is run again
            self._do("add", handle.name, (handle.uid, count, token), act)

    def _enqueue(self, handle: Handle) -> None:
        x = self.draws.random()
        act = lambda: (enqueue_trial(handle.study, SPACE, {X: x}),)  # noqa: E731
        self._do("enqueue", handle.name, (handle.uid, x), act)

    # A trial

    def _run(self, handle: Handle) -> tuple[Any, ...]:
        """Claim a trial and run it; return the answer to the claim."""
        lease: Lease | None = None
        token = f"{self.client}:{new_token()}"

        def act() -> tuple[Any, ...]:
            nonlocal lease
            done = claim(handle.study, token=token, max_attempts=MAX_ATTEMPTS)
            if isinstance(done, Claim):
                lease = done.lease
                return lease.number, lease.attempt
            return "none", done.num_finished, done.target, len(done.running)

        answer = self._do("claim", handle.name, (handle.uid, token), act)
        if lease is not None:
            self._run_trial(handle, lease)
        return answer

    def _run_trial(self, handle: Handle, lease: Lease) -> None:
        mine = (handle.uid, lease.number)
        seen = self._do("see", handle.name, mine, lambda: contents(self.storage.get_trial(lease.trial_id)))
        if seen == DELETED:
            return
        _, fixed, x, steps, _ = seen
        if x is None:
            x = self.draws.random() if fixed is None else fixed
            write = TrialWrite(params={X: (x, DISTRIBUTION)})
            if self._write("ask", handle, lease, write, x) == LOST:
                return
        for epoch in range(len(steps), NUM_EPOCHS):
            time.sleep(self.draws.uniform(0, 0.01))
            action = self.draws.choices(ACTIONS, UNLUCKY if lease.number % 4 == 3 else WEIGHTS)[0]
            if action == "sleep":
                time.sleep(1.2 * self.storage.lease_s)
            elif action == "release":
                self._write("release", handle, lease, TrialWrite())
                self._write("renew", handle, lease, TrialWrite())  # as a heartbeat that comes too late
            if action in {"release", "abandon"}:
                return
            value = self.draws.random()
            if self._write("report", handle, lease, TrialWrite(steps={epoch: value}), epoch, value) == LOST:
                return
        value = self.draws.random()
        write = TrialWrite(values=[value], state=TrialState.COMPLETE)
        self._write("tell", handle, lease, write, "COMPLETE", value)

    def _write(self, kind: str, handle: Handle, lease: Lease, write: TrialWrite, *arguments: Any) -> Any:
        def act() -> tuple[()]:
            if kind == "release":
                self.storage.release(lease, write, limit_s=10)
            elif kind == "renew":
                self.storage.renew(lease)
            else:
                self.storage.write_trial(lease, write, **({"num_epochs": 1} if kind == "report" else {}))
            return ()

        return self._do(kind, handle.name, (handle.uid, lease.number, lease.token, *arguments), act)

    def _finish(self, name: str) -> None:
        """Run what is left of a study; it is an error if that takes many leases."""
        deadline = time.monotonic() + PATIENCE * self.storage.lease_s
        handle = self._read_uid(name, load_study(self.storage, name)) if name in self._names() else None
        while handle is not None:
            answer = self._run(handle)
            if answer == DELETED or (answer[0] == "none" and answer[3] == 0):
                return
            if answer[0] != "none":
                deadline = time.monotonic() + PATIENCE * self.storage.lease_s
            elif time.monotonic() > deadline:
                self.journal.note(f"study {name} is stuck: {answer}")
                return
            time.sleep(self.storage.lease_s / 10)

    def _names(self) -> list[str]:
        return [study.study_name for study in self.storage.get_all_studies()]


def contents(trial: FrozenTrial) -> tuple[Any, ...]:
    fixed = trial.system_attrs.get(FIXED_PARAMS, {}).get(X)
    return trial.state.name, fixed, trial.params.get(X), tuple(sorted(trial.intermediate_values.items())), trial.value


def _refusal(error: ConfigurationError) -> tuple[Any, ...] | None:
    message = str(error)
    if "deleted" in message or "there is no study" in message:
        return DELETED
    if "leaves no room" in message:
        return FULL
    if "--n-trials" in message:
        return REFUSED
    return None
