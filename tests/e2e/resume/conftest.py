"""What the tests of --resume share: an unbroken run, and what a failed one left."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.resumed_compile import SABOTAGE, Place


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where ``unbroken`` and ``failed`` are made once."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "sabotage.py").write_text(SABOTAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        __import__("sabotage")
        yield Place(folder)
        del sys.modules["sabotage"]


@pytest.fixture(scope="module")
def unbroken(first: Place) -> dict[str, bytes]:
    return first.compile(output=first.folder / "unbroken")


@pytest.fixture(scope="module")
def left(first: Place) -> Path:
    """The work folder of a compile that failed in its second segment."""
    first.fail(at=5)
    return first.work


@pytest.fixture
def place(first: Place, tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def failed(place: Place, left: Path) -> Place:
    shutil.copytree(left, place.work)
    return place
