"""Real models, where they were fetched."""

from __future__ import annotations

import pytest

from tests.real.models import REAL_MODELS, RealModel


@pytest.fixture(params=REAL_MODELS, ids=lambda model: model.file)
def real_model(request: pytest.FixtureRequest) -> RealModel:
    """Each of them. Tests reach for no network: what was not fetched is skipped."""
    model: RealModel = request.param
    if not model.path.is_file():
        pytest.skip(f"{model.file} is not here: `python -m tools.fetch_real` fetches it")
    return model
