"""Takes the pictures in docs/pictures: TensorBoard and the page of `calm inspect`, in a browser.

    python docs/pictures.py runs/NAME            (make pictures)

Needs Chromium (on Debian: apt-get install chromium) and a run of `calm fit` that was validated
a few times. Nothing is fetched: the pages come from this machine.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from tensorboard.program import TensorBoard, WerkzeugServer

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-quic", "--virtual-time-budget=30000",
)  # fmt: skip
PHONE = 390
"""Width of a phone, in pixels. Chromium's own windows are never so narrow, so a frame is."""
AS_MEASURED = (
    "<script>localStorage.setItem('_ignoreYOutliers', 'false');"
    "location.replace('/#custom_scalars&_smoothingWeight=0')</script>"
)
"""Goes on to the custom scalars with every value in view and none smoothed. The one setting
TensorBoard keeps in the browser, for its own address alone, so this must be a page of its own."""


def main() -> None:
    """Read the command line and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of a run: runs/NAME")
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parent / "pictures")
    given = parser.parse_args()
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"There is no browser to take pictures with: none of {', '.join(BROWSERS)}.")
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch, "inspect.html")
        command = [sys.executable, "-m", "calm_lightning", "inspect", str(given.run)]
        subprocess.run([*command, "--out", str(page)], check=True)
        take(browser, page.as_uri(), out / "inspect_desktop.png", 1200, 1650)
        frame = Path(scratch, "frame.html")
        frame.write_text(
            f'<body style="margin:0"><iframe src="{page.as_uri()}" scrolling="no" '
            f'style="border:0;width:{PHONE}px;height:2400px"></iframe>'
        )
        take(browser, frame.as_uri(), out / "inspect_phone.png", PHONE, 2400)
        with tensorboard(given.run) as address:
            take(browser, f"{address}/as_measured", out / "tensorboard.png", 1400, 1000)
            heat_maps = f"{address}/#images&tagFilter=text_0"
            take(browser, heat_maps, out / "tensorboard_attention.png", 1100, 650, scale=2)


def take(browser: str, address: str, file: Path, width: int, height: int, scale: int = 1) -> None:
    """Take a picture of a page.

    Args:
        browser: Chromium's program.
        address: Of the page.
        file: The picture, a PNG.
        width: In pixels, as `height`.
        height: What is below is left out.
        scale: Pixels of the picture for one of the page.
    """
    from PIL import Image

    window = f"--window-size={max(width, 500)},{height}"
    with tempfile.TemporaryDirectory() as profile:
        options = [*QUIET, f"--user-data-dir={profile}", window, f"--screenshot={file}"]
        options.append(f"--force-device-scale-factor={scale}")
        subprocess.run([browser, *options, address], check=True, capture_output=True, timeout=180)
    with Image.open(file) as whole:
        whole.crop((0, 0, scale * width, scale * height)).save(file, optimize=True)
    print(f"Written: {file}")


@contextlib.contextmanager
def tensorboard(run: Path) -> Iterator[str]:
    """TensorBoard over a run, while it is active; gives its address on this machine."""
    board = TensorBoard(server_class=_Server)
    with contextlib.chdir(run.resolve().parent):  # its pages tell the folder as it was given
        options = ["--logdir", run.resolve().name, "--samples_per_plugin", "images=20"]
        board.configure(["tensorboard", *options, "--port", "0", "--load_fast", "false"])
        address = board.launch().rstrip("/")
        _wait_for(f"{address}/data/plugin/images/tags")
        yield address


class _Server(WerkzeugServer):
    """TensorBoard's own, with the page `as_measured` beside its pages."""

    def __init__(self, application: Any, flags: Any) -> None:
        def serve(environment: Any, start: Any) -> Any:
            if environment["PATH_INFO"] != "/as_measured":
                return application(environment, start)
            start("200 OK", [("Content-Type", "text/html")])
            return [AS_MEASURED.encode()]

        super().__init__(serve, flags)


def _wait_for(address: str, seconds: float = 120) -> None:
    """Until the page answers and knows a run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urlopen(address, timeout=10) as answer:
                if len(answer.read()) > 10:
                    return
        except (URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(1)
    sys.exit(f"TensorBoard did not answer within {seconds:.0f} seconds.")


if __name__ == "__main__":
    main()
