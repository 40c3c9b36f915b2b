"""The tiers of the tests: fast by default, ``--slow`` adds the slow ones, ``--full`` runs everything."""

import os

import pytest

# torch and OpenBLAS read these when first imported. Several test processes share the cores.
_THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else str(min(4, os.cpu_count() or 1))
os.environ.setdefault("OMP_NUM_THREADS", _THREADS)
os.environ.setdefault("OPENBLAS_NUM_THREADS", _THREADS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--full", action="store_true", help="run every test, those marked full too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    full = config.getoption("--full")
    excluded = {"full": not full, "slow": not (full or config.getoption("--slow"))}
    tiers = [name for name, out in excluded.items() if out]
    left_out = [item for item in items if any(item.get_closest_marker(tier) for tier in tiers)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(autouse=True)
def _no_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles of tests draw no report.html, which takes longer than most of them do; marked ``page``, they do."""
    if request.node.get_closest_marker("page") is None:
        monkeypatch.setattr("qcompiler.api.write_compiled_page", lambda source, staged, place, tell: None)
