"""What to suggest in place of a word that is not known."""

import difflib
from collections.abc import Iterable


def nearest(word: str, choices: Iterable[str], alike: float = 0.5) -> str:
    """``did you mean 'X'?`` for the choice most like `word`, or all choices where none is `alike` (0 to 1)."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=alike)
    close = close or difflib.get_close_matches(word.lower(), known, n=1, cutoff=alike)
    return f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(known)}"
