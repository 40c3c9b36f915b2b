"""The few kinds of error that qcompiler raises on purpose; each knows the exit status of the command line.

A message is one line: where, what, and what to do about it.
"""


class QCompilerError(Exception):
    """Base of every deliberate error. Raised itself, it reports a defect of ours."""

    exit_status = 1


class InputError(QCompilerError):
    """A model or data file that cannot be read or used as it is."""

    exit_status = 2


class ResumeError(InputError):
    """What an earlier run left, which cannot be gone on from: damaged, or of another compile."""


class NotFiniteError(InputError):
    """A model whose outputs hold NaN or infinity, so that nothing can be compared with them."""


class RecipeError(QCompilerError):
    """A recipe, rule or ``--set`` that does not say something we can do."""

    exit_status = 2


class SchemeError(QCompilerError):
    """A quantization scheme that does not fit the weight it was given to."""

    exit_status = 2


class CalibrationError(QCompilerError):
    """Calibration data that is missing, empty, malformed or not finite."""

    exit_status = 2


class ResourceError(QCompilerError):
    """The environment refuses: a full disk, a folder that cannot be written, a memory limit."""

    exit_status = 2


class PromiseError(QCompilerError):
    """The result was made, but does not keep a promise of the recipe (parity, kernels, quality)."""

    exit_status = 3


class PassError(QCompilerError):
    """A pass left the model invalid: a defect of ours, named by its pass."""

    exit_status = 1
