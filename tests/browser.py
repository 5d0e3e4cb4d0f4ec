"""A page in a headless browser, in a frame of a given width: windows themselves are never narrower than 500 pixels."""

import shutil
import subprocess
from pathlib import Path


def title_in_browser(page: str, width: int, folder: Path, script: str) -> str:
    """Return what ``document.title`` is after ``script`` has run in the page.

    Args:
        page: the HTML.
        width: of the frame, in pixels.
        folder: to write into, an empty one.
        script: JavaScript that sets the title.
    """
    chromium = shutil.which("chromium")
    assert chromium, "chromium is missing; install it, as the README says"
    assert "</body>" in page
    (folder / "page.html").write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    frame = folder / "frame.html"
    frame.write_text(
        f"<iframe id=f src=page.html style='width:{width}px;height:2000px;border:0'></iframe><output></output>"
        "<script>f.onload = () => { document.querySelector('output').textContent = f.contentDocument.title }</script>"
    )
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    command += ["--disable-background-networking", "--allow-file-access-from-files", "--window-size=1600,2200"]
    command += [f"--user-data-dir={folder}/chrome", "--virtual-time-budget=3000", frame.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return shown.partition("<output>")[2].partition("</output>")[0].replace("&nbsp;", "\N{NO-BREAK SPACE}")
