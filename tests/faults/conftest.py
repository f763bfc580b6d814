"""The storage on both databases."""

from tests.support.databases import postgres_url, server, storage, url  # noqa: F401 - fixtures
