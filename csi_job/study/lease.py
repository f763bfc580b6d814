"""Leases: whose a running trial is, and who keeps it."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Row

from csi_job.errors import CsiJobError
from csi_job.logs import get_logger
from csi_job.study.database import now_s, server_start_s
from csi_job.study.outage import reason
from csi_job.study.tables import LEASES, TRIALS

logger = get_logger(__name__)
GIVEN_BACK_S: Final = 0.0  # as `renewed_at_s`: free for anyone, and the attempt is not held against the trial
RENEWALS_A_LEASE: Final = 4


@dataclass
class Lease:
    """The right to write to one running trial."""

    trial_id: int
    number: int
    token: str
    attempt: int
    num_epochs: int = 0
    lost: bool = field(default=False, repr=False)


def new_token() -> str:
    """Return a token that no other claim has."""
    return uuid.uuid4().hex


def owner_name() -> str:
    """Return who this process is: host, boot, process namespace, process, and when it began."""
    return "|".join((socket.gethostname(), *_process_space(), str(os.getpid()), _start_of(os.getpid()) or ""))


def is_dead(owner: str) -> bool:
    """Return whether the owner was a process of this very machine that is gone, so that nobody need wait for it."""
    _, *space, process, began = owner.split("|") if owner.count("|") == 4 else ("", "", "", "", "")  # noqa: PLR2004
    if not process or not all(space) or tuple(space) != _process_space():
        return False
    now = _start_of(int(process))
    return now != began if now is not None else not _is_there(int(process))


def _process_space() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "", ""


def _start_of(process: int) -> str | None:
    """Return when a process began, in clock ticks since boot; `` if it only waits to be collected, None if not seen."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def _is_there(process: int) -> bool:
    """Return whether a process lives that `/proc` may hide from us."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def running_trials(connection: Connection, study_id: int) -> sa.Select[Any]:
    """Return the query of a study's running trials with their leases and the database's time.

    Columns: `trial_id`, `number`, those of `LEASES` (None where there is no lease), `now_s`, `server_start_s`.
    """
    clock = (now_s(connection).label("now_s"), server_start_s(connection).label("server_start_s"))
    leases = [column for column in LEASES.c if column is not LEASES.c.trial_id]
    return (
        sa.select(TRIALS.c.trial_id, TRIALS.c.number, *leases, *clock)
        .outerjoin(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING)
    )


def is_orphan(row: Row[Any]) -> bool:
    """Return whether a trial of `running_trials` is free to be taken over."""
    if row.token is None or row.renewed_at_s == GIVEN_BACK_S:
        return True
    # While the server was down nobody could renew, so a lease counts from its start at the earliest.
    age_s = row.now_s - max(row.renewed_at_s, row.server_start_s)
    return bool(age_s > row.lease_s or is_dead(row.owner))


class Keeper(threading.Thread):
    """Renews the lease of the trial that runs here, through outages, until the training stalls."""

    def __init__(
        self, renew: Callable[[Lease], None], lease_s: float, *, stall_s: float, on_stall: Callable[[], None]
    ) -> None:
        """Keep leases of this length.

        Args:
            renew: renews a lease, or raises `CsiJobError` without waiting for a database that is away.
            lease_s: the age at which a lease is taken over.
            stall_s: seconds without a finished batch after which nothing is renewed any more.
            on_stall: called once then, in this thread.

        """
        super().__init__(name="lease", daemon=True)
        self._renew_lease = renew
        self._interval_s = lease_s / RENEWALS_A_LEASE
        self._stall_s = stall_s
        self._on_stall = on_stall
        self._lease: Lease | None = None
        self._beat_at = time.monotonic()
        self.over = threading.Event()
        self.stalled = False

    def beat(self) -> None:
        """Tell that the training goes on."""
        self._beat_at = time.monotonic()

    def watch(self, lease: Lease | None) -> None:
        """Keep this lease from now on, or none."""
        self.beat()
        self._lease = lease

    def end(self) -> None:
        """Stop the thread."""
        self.over.set()
        self.join(timeout=5)

    def run(self) -> None:
        """Renew, several times within the age at which a lease is taken over."""
        while not self.over.wait(self._interval_s):
            lease = self._lease
            if lease is None or lease.lost:
                continue
            if time.monotonic() - self._beat_at >= self._stall_s:
                self.stalled = True
                self._on_stall()
                return
            self._renew(lease)

    def _renew(self, lease: Lease) -> None:
        try:
            # A database that is away: the next turn of the loop tries again, and the main thread decides when to give
            # up. A lease that is lost: the main thread sees it by the lease's mark.
            self._renew_lease(lease)
        except CsiJobError as error:
            logger.debug("%s", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, a thread that ended would give the trial away
            logger.warning("the lease of trial %d could not be renewed: %s", lease.number, reason(error))
