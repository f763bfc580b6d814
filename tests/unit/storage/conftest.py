"""A storage on SQLite, and the toy study in it."""

from tests.unit.study.conftest import storage, study  # noqa: F401 - fixtures
