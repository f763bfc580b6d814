"""The storage on both databases."""

from tests.databases import postgres_url, server, storage, url  # noqa: F401 - fixtures
