"""A headless Chromium driven over its own pipe (the DevTools protocol), with nothing but the standard library."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 30.0  # seconds for one answer


def find_chromium() -> str | None:
    """$ZOO_CHROMIUM, else the first of NAMES on PATH."""
    return os.environ.get("ZOO_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page. `errors` holds what its console complained about, `requests` every address it asked for."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._rest = b""
        self._last = 0
        self._session: str | None = None
        self._loaded: set[str] = set()
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Page.setLifecycleEventsEnabled", enabled=True)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events on the way are noted."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._last:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]
            self._note(found)

    def open(self, path: Path, *, width: int, height: int = 800) -> None:
        """Load a file at a window size, and wait until it is there."""
        phone = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        loader = self.ask("Page.navigate", url=path.as_uri())["loaderId"]
        while loader not in self._loaded:
            self._note(self._receive())

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as a reader presses it."""
        codes = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, "")}
        code, text = codes[key]
        both = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **both)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **both)
        self.settle()

    def click(self, selector: str) -> None:
        """A mouse click in the middle of the first element that `selector` finds."""
        place = self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center', inline: 'center'}); const box = found.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)
        self.settle()

    def settle(self) -> None:
        """Let the page handle what was just done to it."""
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def picture(self, path: Path) -> None:
        """A screenshot of the whole page, to be looked at."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(b64decode(found["data"]))

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"Chromium said nothing for {PATIENCE:.0f} s"
            part = os.read(self._back, 1 << 20)
            assert part, "Chromium ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        if method == "Page.lifecycleEvent" and params["name"] == "load":
            self._loaded.add(params["loaderId"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@contextlib.contextmanager
def chromium(program: str, profile: Path) -> Iterator[Tab]:
    """A tab of a Chromium of its own, ended with the block."""
    inward, to = os.pipe()
    back, outward = os.pipe()
    # Chromium reads commands from descriptor 3 and writes to 4: move ours out of the way before they are put there
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (inward, outward)]
    os.close(inward)
    os.close(outward)
    options = [
        "--headless",
        "--disable-gpu",
        "--no-first-run",
        "--disable-extensions",
        "--disable-background-networking",
    ]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    command = f'exec "$@" 3<&{high[0]} 4>&{high[1]}'
    with (profile / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", program, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            pass_fds=high,
            stdout=log,
            stderr=log,
        )
    for end in high:
        os.close(end)
    try:
        yield Tab(to, back)
    finally:
        process.kill()
        process.wait()
        os.close(to)
        os.close(back)
