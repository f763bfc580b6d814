"""Settings of the study database."""

from pathlib import Path

from pydantic import Field, SecretStr

from csi_job.settings import Section


class StorageSettings(Section):
    """The study database."""

    url: SecretStr | None = None
    """Database URL (`sqlite:///file` or `postgresql+psycopg2://user@host/db`); default: `<work>/studies.db`. Give the
    password in CSI_JOB_STORAGE__PASSWORD or a file: a URL on the command line is visible in the process list."""
    password: SecretStr | None = None
    """Database password; use this instead of a password in the URL."""
    password_file: Path | None = None
    """File containing the database password."""
    create_tables: bool = True
    """Create the database file and tables if missing. Turn this off for workers that join an existing study: they then
    also retry for half a minute when the database rejects them, since the same settings worked before."""
    connect_s: float = Field(default=60.0, ge=0)
    """Seconds to wait for the database at startup."""
    outage_s: float = Field(default=900.0, ge=0)
    """Seconds to keep training and retrying after the database becomes unreachable."""
    lease_s: float = Field(default=60.0, gt=0)
    """Seconds without a heartbeat after which another worker resumes the trial."""
