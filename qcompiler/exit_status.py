"""How the command ends: an exit status for each kind of error, and the line that is printed of it."""

import click

from qcompiler.errors import QCompilerError

CLOSED_PIPE = 128 + 13  # as a process that SIGPIPE ended


def outcome(error: BaseException) -> tuple[int, str]:
    """Exit status, and the line to print: with what the compile noted on going on from what is finished."""
    status, line = _kind_of_end(error)
    noted = error.__cause__ if isinstance(error, click.Abort) else error  # click's word for KeyboardInterrupt
    notes = "; ".join(getattr(noted, "__notes__", []))
    if not notes:
        return status, line
    return status, f"{line.removesuffix('; nothing was written') or 'terminated'}; {notes}"


def _kind_of_end(error: BaseException) -> tuple[int, str]:
    match error:
        case QCompilerError():
            return error.exit_status, " ".join(str(error).split())
        case click.exceptions.Exit():
            return error.exit_code, ""
        case click.ClickException():
            return error.exit_code, ""
        case KeyboardInterrupt() | click.Abort():
            return 130, "interrupted; nothing was written"
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1, ""
        case BrokenPipeError():
            return CLOSED_PIPE, ""
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return 2, f"{where}{error.strerror or error}; nothing was written"
        case MemoryError():
            return 2, "out of memory; close other programs, or use a recipe that needs no calibration"
        case _:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            return 1, f"a defect of qcompiler ({said}); run again with --traceback and report it"
