"""The storage on both databases."""

from tests.support.databases import mortal, postgres_url, server, storage, url  # noqa: F401 - fixtures
