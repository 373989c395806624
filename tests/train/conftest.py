"""Fixtures of the training tests."""

from loop_made import world  # noqa: F401 - a fixture
