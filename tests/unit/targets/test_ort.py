"""What the target ort says of schemes."""

import pytest

from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.targets import ort


@pytest.mark.parametrize("size", ort.BLOCK_SIZES)
def test_its_blocks_are_taken(size: int) -> None:
    assert ort.supports(QuantScheme(4, False, Granularity.GROUP, size)) is None


@pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.TENSOR])
def test_whole_rows_and_weights_are_taken(granularity: Granularity) -> None:
    assert ort.supports(QuantScheme(4, False, granularity)) is None


@pytest.mark.parametrize("size", [8, 48, 512])
def test_other_groups_are_refused_with_all_that_are_taken(size: int) -> None:
    refusal = ort.supports(QuantScheme(4, False, Granularity.GROUP, size))
    assert refusal is not None and refusal.startswith(f"group_size {size}: ")
    assert refusal.endswith("use one of 16, 32, 64, 128, 256, channel, tensor")
