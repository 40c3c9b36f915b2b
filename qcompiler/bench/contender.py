"""A model as it is measured: a session on ONNX Runtime's CPU, with our library or without, and its timed runs.

The process that measures loading imports this: it knows nothing of the compiler, whose memory would count otherwise.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from qcompiler.runtime import create_session, register

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Contender:
    """What takes part.

    Attributes:
        path: the ONNX file.
        library: whether our operators are registered.
        threads: of a session; None leaves it to ONNX Runtime, which takes one for each core.
    """

    path: str
    library: bool
    threads: int | None = None

    def open(self) -> ort.InferenceSession:
        """A session whose threads sleep between its runs.

        Raises:
            InputError, ResourceError: see ``create_session``.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        # Within a run threads spin, as in an application; after it they would, on the cores of the other session.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.library:
            register(options)
        return create_session(self.path, ["CPUExecutionProvider"], session_options=options)


def timed_run(session: ort.InferenceSession, feed: Mapping[str, Array]) -> Callable[[], float]:
    """A function that runs the session on the feed and returns the seconds that it took.

    Inputs are handed over beforehand, and outputs stay with ONNX Runtime: NumPy's copies are not the model's time.
    """
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}

    def run() -> float:
        start = time.perf_counter()
        outputs = session.run_with_ort_values(None, values)
        seconds = time.perf_counter() - start
        del outputs  # freed once the clock has stopped
        return seconds

    return run
