import logging

import pytest

from qcompiler.graph.quiet import quiet


def test_the_level_comes_back_even_after_an_error() -> None:
    logger = logging.getLogger("some.library")
    logger.setLevel(logging.INFO)
    with pytest.raises(ValueError, match="inside"), quiet("some.library", logging.CRITICAL):
        assert not logger.isEnabledFor(logging.ERROR)
        raise ValueError("inside")
    assert logger.level == logging.INFO
