"""The laboratory as fixtures; everything in this folder needs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.daemon import make_key
from tests.lab.hosts import PUBLIC, Lab, available
from tests.lab.nat import unavailable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """An empty laboratory, gone with all that runs in it when the test ends."""
    if reason := available():
        pytest.skip(f"no laboratory here: {reason}")
    with Lab() as built:
        yield built


@pytest.fixture
def internet() -> Iterator[Lab]:
    """A laboratory whose addresses look public."""
    if reason := unavailable():
        pytest.skip(f"no routers here: {reason}")
    with Lab(PUBLIC) as built:
        yield built


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A fresh network's key file."""
    return make_key(tmp_path)
