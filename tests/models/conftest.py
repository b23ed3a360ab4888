"""What tests of models share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's tests keep instances, each written once."""
    return tmp_path_factory.mktemp("instances")
