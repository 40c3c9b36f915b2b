"""report.html as a browser has it: nothing on the console, nothing wider than a phone, tables that sort and filter."""

import shutil
import subprocess
from pathlib import Path

import pytest

import qcompiler
from tests import command_models as models

pytestmark = [pytest.mark.slow, pytest.mark.page]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PROBE = """<script>addEventListener("load", () => {
    const search = document.querySelector("input[data-table]");
    search.value = "fc2"; search.dispatchEvent(new Event("input"));
    const shown = [...document.querySelectorAll("#products tbody tr")].filter((row) => !row.hidden);
    document.querySelector("#products th[data-sort]").click();
    document.title = `fits ${document.documentElement.scrollWidth <= innerWidth} rows ${shown.length}`;
});</script>"""


@pytest.fixture
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)})")
    return found


def _opened(browser: str, page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}", "--window-size=500,900", "--enable-logging=stderr", "--virtual-time-budget=2000",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_nothing_is_said_on_the_console_and_nothing_is_too_wide(browser: str, tmp_path: Path) -> None:
    made = qcompiler.compile(
        models.decoder(tmp_path), "w4a16-rtn", settings=["group_size=32"], output=tmp_path / "out"
    )
    text = (made.folder / "report.html").read_text("utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"), "utf-8")
    opened = _opened(browser, probed, tmp_path)
    assert "CONSOLE" not in opened.stderr, opened.stderr
    title = opened.stdout.partition("<title>")[2].partition("<")[0]
    assert title == "fits true rows 1"
