"""Models for these tests; what cannot be had here is a visible skip with its reason."""

from collections.abc import Callable

import pytest

from models.built_model import BuiltModel
from models.cache import UnavailableError


@pytest.fixture(scope="session")
def build_or_skip() -> Callable[[Callable[[], BuiltModel]], BuiltModel]:
    def build(model: Callable[[], BuiltModel]) -> BuiltModel:
        try:
            return model()
        except UnavailableError as error:
            pytest.skip(str(error))

    return build
