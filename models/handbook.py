"""The Debian Administrator's Handbook as plain text: calibration and evaluation prose for SmolLM2.

Derived from Debian's package debian-handbook 11.20220922 (Raphaël Hertzog, Roland Mas; GPL-2+ or CC BY-SA
3.0), fetched with apt-get; nothing is installed. Where apt has no such package, pass a text of your own.
"""

import re
from html.parser import HTMLParser
from pathlib import Path

from models import cache
from qcompiler.errors import InputError

PACKAGE = "debian-handbook=11.20220922"
TEXT_SHA256 = "9d8bd75c292c58feb012c124c41dcc60ca3b1edc3c354f105edf49f70c319fef"
CALIBRATION_CHARACTERS = 300_000
EVALUATION_START = 0.4  # of the characters
MIN_PARAGRAPH = 80  # characters
DROPPED_TAGS = frozenset({"script", "style", "pre", "table"})
DROPPED_CLASSES = frozenset({"toc", "docnav", "example", "informalexample", "screen"})
VOID_TAGS = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
)


def calibration_text(text: Path | None = None) -> str:
    """The first 300,000 characters of the handbook, or of the given text.

    Raises:
        UnavailableError: no text is given and the package cannot be had.
        InputError: the given text cannot be read.
    """
    return _whole(text)[:CALIBRATION_CHARACTERS]


def evaluation_text(text: Path | None = None) -> str:
    """From two fifths of the handbook on, or of the given text. Raises what ``calibration_text`` raises."""
    whole = _whole(text)
    return whole[int(EVALUATION_START * len(whole)) :]


def files(text: Path | None = None) -> tuple[Path, Path]:
    """calibration.txt and evaluation.txt in the cache. Raises what ``calibration_text`` raises."""
    whole = _whole(text)
    facts = {"whole": cache.sha256_of(whole.encode())}

    def build(folder: Path) -> None:
        (folder / "calibration.txt").write_text(whole[:CALIBRATION_CHARACTERS], "utf-8", newline="\n")
        start = int(EVALUATION_START * len(whole))
        (folder / "evaluation.txt").write_text(whole[start:], "utf-8", newline="\n")

    folder = cache.entry("text", facts, [Path(__file__)], build)
    return folder / "calibration.txt", folder / "evaluation.txt"


def _whole(text: Path | None) -> str:
    if text is not None:
        try:
            return text.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{text}: cannot be read as UTF-8 text: {error}") from None
    folder = cache.entry("handbook", {"package": PACKAGE}, [Path(__file__)], _fetch)
    return (folder / "handbook.txt").read_text("utf-8")


def _fetch(folder: Path) -> None:
    advice = "run apt-get update, or pass a text with --text"
    with cache.debian_package(PACKAGE, advice) as files:
        derived = _derive(files / "usr" / "share" / "doc" / "debian-handbook" / "html" / "en-US")
    found = cache.sha256_of(derived.encode())
    if found != TEXT_SHA256:
        raise cache.UnavailableError(f"{PACKAGE}: its text has SHA-256 {found}, pinned is {TEXT_SHA256}")
    (folder / "handbook.txt").write_text(derived, "utf-8", newline="\n")


def _derive(pages: Path) -> str:
    """Paragraphs of all pages but the indexes, in name order, white space collapsed, no short ones."""
    paragraphs: list[str] = []
    for page in sorted(pages.glob("*.html")):
        if page.stem in ("index", "ix01"):
            continue
        extractor = _Paragraphs()
        extractor.feed(page.read_text("utf-8"))
        extractor.close()
        paragraphs += [" ".join(paragraph.split()) for paragraph in extractor.found]
    text = "\n\n".join(paragraph for paragraph in paragraphs if len(paragraph) > MIN_PARAGRAPH)
    # The published figures were measured with these names replaced, by others of equal length.
    text = text.replace("httpredir.debian.org", "that-redirector.site")
    text = text.replace("deb.debian.org", "the.mirror.org")
    text = re.sub(r"\b(security|archive|snapshot|ftp|ftp\.\w\w)\.debian\.org", r"\1.mirror.org", text)
    return text.replace("/root/", "/home/")


class _Paragraphs(HTMLParser):
    """Text of each outermost element of class para, without the dropped elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._open: list[tuple[str, str]] = []  # tag, and "dropped", "para" or ""
        self._current: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID_TAGS:
            return
        classes = (dict(attrs).get("class") or "").split()
        kind = ""
        if tag in DROPPED_TAGS or DROPPED_CLASSES.intersection(classes):
            kind = "dropped"
        elif "para" in classes:
            kind = "para"
        self._open.append((tag, kind))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID_TAGS:
            return
        while self._open:
            closed, kind = self._open.pop()
            if kind == "para" and not self._inside("para"):
                self.found.append("".join(self._current))
                self._current = []
            if closed == tag:
                return

    def handle_data(self, data: str) -> None:
        if self._inside("para") and not self._inside("dropped"):
            self._current.append(data)

    def _inside(self, kind: str) -> bool:
        return any(kind == k for _, k in self._open)
