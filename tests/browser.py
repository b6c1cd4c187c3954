"""Drives a headless Chromium through its DevTools protocol, over a pipe: no driver, no package, no port.

`python tests/browser.py report.html picture.png '#runs' dark narrow` takes a picture of a part of a page.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

WIDE, NARROW = (1280, 900), (390, 844)
"""Width and height in pixels of a screen and of a phone."""


class Browser:
    """One page in a Chromium of its own, which has no network."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        # Chromium reads commands from descriptor 3 and writes to 4, each message ended by a zero byte.
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        high = [fcntl.fcntl(number, fcntl.F_DUPFD, 20) for number in (theirs_in, theirs_out)]
        for number in (theirs_in, theirs_out):
            os.close(number)

        def place_descriptors() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.profile = tempfile.mkdtemp()
        self.process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
                *("--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"),
                *("--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={self.profile}"),
            ],
            preexec_fn=place_descriptors,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in high:
            os.close(number)
        self.read, self.written = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb")
        self.count, self.rest = 0, b""
        self.complaints: list[str] = []
        """Errors and warnings of the console, exceptions, and everything that was asked of a network."""
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self.session: str | None = None
        self.session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.written.close()
        self.process.terminate()
        self.process.wait(30)
        self.read.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if getattr(self, "session", None):
            message["sessionId"] = self.session
        self.written.write(json.dumps(message).encode() + b"\0")
        self.written.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            more = self.read.read1(1 << 20)
            assert more, "the browser is gone"
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        method, found = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(found["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(part.get("value", part)) for part in found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.complaints.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = found["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "about:")):
                self.complaints.append(f"request of {url}")
        return message

    def show(self, page: Path, size: tuple[int, int] = WIDE, dark: bool = False) -> float:
        """Open a page and draw all of its figures; returns the seconds until it could be read."""
        self.resize(size)
        self.colours(dark)
        started = time.time()
        self._send("Page.navigate", url=page.absolute().as_uri())
        self.wait("document.documentElement?.dataset.ready")
        return time.time() - started

    def draw_all(self) -> None:
        """What printing does: open whatever is folded and draw every figure."""
        self.evaluate("dispatchEvent(new Event('beforeprint'))")
        self.wait("[...document.querySelectorAll('.plot')].every(place => place.querySelector('.main-svg'))")

    def resize(self, size: tuple[int, int]) -> None:
        """Give the page another width and height."""
        width, height = size
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def colours(self, dark: bool) -> None:
        """Prefer a dark or a light page."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, script: str) -> Any:
        """The value of a piece of JavaScript."""
        answer = self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Wait until a piece of JavaScript is true."""
        until = time.time() + seconds
        while not self._holds(condition):
            assert time.time() < until, f"{condition} did not become true: {self.complaints}"
            time.sleep(0.05)

    def _holds(self, condition: str) -> bool:
        try:
            return bool(self.evaluate(f"Boolean({condition})"))
        except AssertionError as error:
            if "navigated" in str(error):  # the page loads itself again just now
                return False
            raise

    def picture(self, path: Path, selector: str = "html") -> None:
        """Write a picture of an element."""
        self.evaluate("new Promise(done => setTimeout(done, 300))")
        box = self.evaluate(
            f"(({{x, y, width, height}}) => ({{x: x + scrollX, y: y + scrollY, width, height, scale: 1}}))"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        shot = self._send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=box)
        path.write_bytes(base64.b64decode(shot["data"]))


def main() -> None:
    """Take the picture that the command line asks for."""
    page, picture, selector, *how = sys.argv[1:]
    with Browser() as browser:
        size = NARROW if "narrow" in how else WIDE
        browser.show(Path(page), size, "dark" in how)
        height = browser.evaluate(f"document.querySelector({selector!r}).offsetHeight")
        browser.resize((size[0], height))  # what is in sight is drawn
        browser.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{behavior: 'instant'}})")
        seen = f"[...document.querySelectorAll({selector + ' .plot'!r})].filter(place => place.checkVisibility())"
        browser.wait(f"{seen}.every(place => place.dataset.drawn)")
        browser.picture(Path(picture), selector)
        assert not browser.complaints, browser.complaints


if __name__ == "__main__":
    main()
