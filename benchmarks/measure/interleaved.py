"""Sessions that run in turn, in one process, so that what else the machine does meets all of them alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from qcompiler.runtime import register

SECONDS = 1.0


def quiet_session(model: onnx.ModelProto | Path, threads: int, ours: bool) -> ort.InferenceSession:
    """One whose threads do not spin between runs, on the cores of the session that is measured; with our library or without."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if ours:
        register(options)
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def least_seconds(
    sessions: Sequence[ort.InferenceSession],
    feeds: Mapping[str, npt.NDArray[Any]],
    seconds: float = SECONDS,
    turn: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """The least time of a run of each with the same feeds, in at least three rounds and ``seconds`` together.

    In a round each session runs once, or again and again until its ``turn`` of so many seconds is over.
    ``clock`` tells the time of a run: time.thread_time, of sessions with one thread, leaves out waiting for a processor.
    """
    bindings = []
    for session in sessions:
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        bindings.append(binding)
    best = [np.inf] * len(sessions)
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < 3 or time.perf_counter() < end:
        for index, session in enumerate(sessions):
            end_of_turn = time.perf_counter() + turn
            while True:
                start = clock()
                session.run_with_iobinding(bindings[index])
                best[index] = min(best[index], clock() - start)
                if time.perf_counter() >= end_of_turn:
                    break
        rounds += 1
    return best
