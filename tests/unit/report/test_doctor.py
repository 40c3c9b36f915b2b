"""What doctor says of a machine where something is missing."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from qcompiler.report import doctor


def test_torch_is_asked_for_only_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_torch(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without_torch)
    (torch,) = [finding for finding in doctor.examine(tmp_path) if finding.what == "torch"]
    assert not torch.present
    for user in ("autoround", "sensitivity: fisher", "device: cuda"):
        assert user in torch.advice
    assert "other recipes do not" in torch.advice and "calibrated" not in torch.advice
