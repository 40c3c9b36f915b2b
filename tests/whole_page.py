"""Whether an HTML page is well formed, and asks for nothing from elsewhere."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br"}


class _Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def is_whole(page: str) -> None:
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert not re.findall(r'(?:src|href)="(?!#|data:)|url\((?!#)|@import', page)
