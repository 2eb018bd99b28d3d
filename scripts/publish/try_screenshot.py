"""Takes the README's picture of the page "Try it": nbs/figures/try.png.

    .venv/bin/python -m scripts.publish.try_screenshot

Needs Chromium. The picture is what a visitor sees of our cat on a desktop in light colours, in 256
colours so that it's small.
"""

import functools
import io
import shutil
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from scripts.project import ROOT
from scripts.publish.site_hooks import KEPT_ELSEWHERE

PICTURE = ROOT / "nbs" / "figures" / "try.png"


def copy_page(
    folder: Path,  # the page goes into its folder `try`
) -> Path:
    """The page as the site has it, with its weights."""
    shutil.copytree(ROOT / "nbs" / "try", folder / "try")
    for name, path in KEPT_ELSEWHERE.items():
        if name.startswith("try/"):
            shutil.copy(path, folder / name)
    return folder / "try"


def serve(
    folder: Path,  # what is at the top of the address
) -> ThreadingHTTPServer:
    """A server of this folder to this machine, which runs until its `shutdown`."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    handler.func.log_message = lambda *arguments: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def find_chromium(
    playwright,  # from `sync_playwright`
) -> str | None:
    """Chromium's program, the system's or Playwright's own; None if there's neither."""
    names = ("chromium", "chromium-browser", "google-chrome")
    programs = [*map(shutil.which, names), playwright.chromium.executable_path]
    return next((program for program in programs if program and Path(program).exists()), None)


def main():
    """Take the picture."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        copy_page(Path(folder))
        server = serve(Path(folder))
        chromium = playwright.chromium.launch(executable_path=find_chromium(playwright))
        tab = chromium.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
        tab.goto(f"http://127.0.0.1:{server.server_port}/try/index.html")
        tab.wait_for_selector("main[aria-busy=false]")
        first, last = (tab.locator(name).bounding_box() for name in ("#answer", "#sentence"))
        clip = {"x": first["x"] - 10, "y": first["y"] + 50, "width": first["width"] + 20}
        clip["height"] = last["y"] + last["height"] + 8 - clip["y"]
        content = tab.screenshot(clip=clip, full_page=True)
        chromium.close()
        server.shutdown()
    picture = Image.open(io.BytesIO(content)).convert("RGB").quantize(256)
    picture.save(PICTURE, optimize=True)
    print(f"{PICTURE.relative_to(ROOT)}: {picture.size[0]} x {picture.size[1]}")


if __name__ == "__main__":
    main()
