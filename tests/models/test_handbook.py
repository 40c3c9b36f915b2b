from pathlib import Path

import pytest

from models import handbook
from models.cache import UnavailableError

LONG = "This paragraph is long enough to be kept, since it has more than eighty characters in it."
PAGE = f"""<html><head><style>.para {{}}</style></head><body>
<div class="toc"><div class="para">{LONG} Contents.</div></div>
<div class="para">Short.</div>
<div class="section"><div class="para">
   {LONG}   See <code>deb.debian.org</code> &amp; <pre class="screen">apt update</pre>
   <div class="para">An inner one<br>belongs to it.</div></div></div>
<p class="para">{LONG} In /root/ of ftp.us.debian.org.</p>
</body></html>"""


def test_paragraphs_are_cut_as_described(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE, "utf-8")
    (tmp_path / "index.html").write_text(PAGE, "utf-8")
    assert handbook._derive(tmp_path) == (
        f"{LONG} See the.mirror.org & An inner onebelongs to it.\n\n{LONG} In /home/ of ftp.us.mirror.org."
    )


def test_a_given_text_is_split_like_the_handbook(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a" * 400_000 + "b" * 600_000)
    assert handbook.calibration_text(text) == "a" * 300_000
    assert handbook.evaluation_text(text) == "b" * 600_000


@pytest.mark.slow
def test_the_package_gives_the_text_of_the_published_figures() -> None:
    try:
        text = handbook.calibration_text()  # its hash was checked on the way
    except UnavailableError as error:
        pytest.skip(str(error))
    assert text.startswith("This chapter revisits some aspects")
