"""--mapped-weights: sessions hold no copy of the weights, and processes share the file's pages."""

from pathlib import Path

import pytest

from benchmarks import synthetic
from benchmarks.mapped_weights import two_processes
from qcompiler.api import compile as compile_model

MB = 1e6


@pytest.mark.slow
def test_weights_are_used_in_the_file_that_processes_share(tmp_path: Path) -> None:
    model = synthetic.decoder(tmp_path / "model", 30_000_000, synthetic.DecoderSizes(1024, 4096, 2, 8_000))
    compiled = {
        mapped: compile_model(
            model, "w4a16-rtn", output=tmp_path / str(mapped), target="qcompiler", mapped_weights=mapped
        )
        for mapped in (False, True)
    }
    held = {mapped: two_processes(made.path) for mapped, made in compiled.items()}
    weights = (compiled[True].folder / "model.onnx.data").stat().st_size / MB
    for rows, lines in zip(held[False], held[True], strict=True):
        # A tenth for what else differs from one process to another; 1.0 of the weights was measured.
        assert rows["anonymous_mb"] - lines["anonymous_mb"] > 0.9 * weights
        assert lines["resident_mb"] > 0.9 * weights
        assert lines["share_mb"] < 0.6 * lines["resident_mb"]
