"""The thread that renews the lease of the running trial."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from csi_job.errors import CsiJobError, StorageRejectedError
from csi_job.storage.lease import Lease
from csi_job.storage.retry import REJECTED_LIMIT_S, reason

logger = logging.getLogger(__name__)
RENEWALS_PER_LEASE: Final = 4


class Heartbeat(threading.Thread):
    """Renews the lease of the running trial, through outages, until the training stalls."""

    def __init__(
        self, renew: Callable[[Lease], None], lease_s: float, *, stall_s: float, on_stall: Callable[[], None]
    ) -> None:
        """Set up the thread.

        Args:
            renew: renews a lease, or raises `CsiJobError` at once if the database is unreachable.
            lease_s: the age at which a lease expires.
            stall_s: seconds without a finished batch after which renewing ends.
            on_stall: called once then, in this thread.
        """
        super().__init__(name="lease", daemon=True)
        self._renew_lease = renew
        self._interval_s = lease_s / RENEWALS_PER_LEASE
        self._stall_s = stall_s
        self._on_stall = on_stall
        self._lease: Lease | None = None
        self._beat_at = time.monotonic()
        self.over = threading.Event()
        self.stalled = False
        self._rejected_at: float | None = None
        self.rejection: StorageRejectedError | None = None
        """Set when the database has rejected the renewals for too long."""

    def beat(self) -> None:
        """Note that the training makes progress."""
        self._beat_at = time.monotonic()

    def watch(self, lease: Lease | None) -> None:
        """Renew this lease from now on, or none."""
        self.beat()
        self._lease = lease

    def end(self) -> None:
        """Stop the thread."""
        self.over.set()
        self.join(timeout=5)

    def run(self) -> None:
        """Renew the lease several times before it would expire."""
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
            # If the database is unreachable, the next turn tries again, and the main thread decides when to give up.
            # If the lease is lost, the main thread sees `lease.lost`.
            self._renew_lease(lease)
            self._rejected_at = None
        except StorageRejectedError as error:
            self._rejected_at = self._rejected_at or time.monotonic()
            if time.monotonic() - self._rejected_at >= REJECTED_LIMIT_S:
                self.rejection = error
        except CsiJobError as error:
            self._rejected_at = None
            logger.debug("%s", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the trial would be lost with this thread
            values = {"trial": lease.number, "reason": reason(error)}
            logger.warning("the lease of trial %(trial)d could not be renewed: %(reason)s", values)
