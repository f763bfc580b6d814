"""Settings of the database that holds the study."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from csi_job.settings import Section


class StorageSettings(Section):
    """The database that holds the study."""

    url: SecretStr | None = None
    """SQLAlchemy URL (`sqlite:///file`, `postgresql+psycopg2://user@host/db`); default: `<work>/studies.db`. The
    password comes from CSI_JOB_STORAGE__PASSWORD or a file: what is written here may be seen, a flag in the process
    list."""
    password: SecretStr | None = None
    """Password of the database; better than one in the URL."""
    password_file: Path | None = None
    """File that holds the password."""
    create_tables: bool = True
    """Make file and tables where they are missing; off for workers whose study another command has made: there a
    database that refuses is waited for too, since its settings were right before."""
    connect_s: float = Field(default=60.0, ge=0)
    """Seconds to wait for the database at start."""
    outage_s: float = Field(default=900.0, ge=0)
    """Seconds to wait for a database that went away later, while training goes on."""
    lease_s: float = Field(default=60.0, gt=0)
    """Age at which a silent worker's trial is taken over by another."""
