"""A page in a headless browser, in a frame of a given width: windows themselves are never narrower than 500 pixels."""

import shutil
import subprocess
from pathlib import Path

from need import need

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Names of one browser, by who packages it."""


def title_in_browser(page: str, width: int, folder: Path, script: str, *, dark: bool = False) -> str:
    """Return what ``document.title`` is after ``script`` has run in the page, of which the console has nothing to say.

    Args:
        page: the HTML.
        width: of the frame, in pixels.
        folder: to write into, an empty one.
        script: JavaScript that sets the title.
        dark: whether the reader prefers dark pages.
    """
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    need(chromium, "a browser that renders the report", "apt-get install chromium")
    assert "</body>" in page
    (folder / "page.html").write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    frame = folder / "frame.html"
    frame.write_text(
        f"<iframe id=f src=page.html style='width:{width}px;height:2000px;border:0'></iframe><output></output>"
        "<script>f.onload = () => { document.querySelector('output').textContent = f.contentDocument.title }</script>"
    )
    command = [str(chromium), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    command += ["--disable-background-networking", "--allow-file-access-from-files", "--window-size=1600,2200"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder}/chrome", "--virtual-time-budget=3000", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not told, told
    shown = done.stdout
    return shown.partition("<output>")[2].partition("</output>")[0].replace("&nbsp;", "\N{NO-BREAK SPACE}")
