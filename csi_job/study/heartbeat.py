"""The thread that renews the lease of the trial that runs here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from csi_job.errors import CsiJobError
from csi_job.logs import get_logger
from csi_job.storage.lease import Lease
from csi_job.storage.retry import reason

logger = get_logger(__name__)
RENEWALS_A_LEASE: Final = 4


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
