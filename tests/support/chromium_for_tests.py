"""A headless Chromium without a network, driven through its DevTools protocol."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-port=0",
)


class Browser:
    """One page; `problems` holds what its console said, `requests` what it asked of a network."""

    def __init__(self, profile: Path) -> None:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
        if found is None:
            pytest.skip("no Chromium is installed")
        self._process = subprocess.Popen(
            [found, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._count = 0

    def __enter__(self) -> Browser:
        from websockets.sync.client import connect

        line = next(line for line in self._process.stderr if "ws://" in line)
        port = re.search(r":(\d+)/", line)[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        self._socket = connect(pages[0]["webSocketDebuggerUrl"], max_size=None)
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")
        self.call(
            "Network.emulateNetworkConditions",
            offline=True,
            latency=0,
            downloadThroughput=0,
            uploadThroughput=0,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)
        self._process.stderr.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command, and keep what happens until its answer."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if message["method"] == "Runtime.consoleAPICalled":
            self.problems.append(str([arg.get("value") for arg in params["args"]]))
        if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(params)[:1000])

    def run(self, script: str) -> Any:
        """Return what a script comes to."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Wait until a script comes to something that is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}; {self.problems}"
            time.sleep(0.02)

    def open(self, page: Path) -> float:
        """Open a report, and return the seconds until its last figure stood."""
        start = time.monotonic()
        self.call("Page.navigate", url=page.as_uri())
        self.wait("document.documentElement?.dataset.ready === 'yes'")
        return time.monotonic() - start

    def size(self, width: int) -> None:
        """Make the page as wide as a screen is."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press at one place, move, and let go at another."""
        mouse = "Input.dispatchMouseEvent"
        for kind, (x, y) in (
            ("mouseMoved", start),
            ("mousePressed", start),
            ("mouseMoved", end),
            ("mouseReleased", end),
        ):
            self.call(mouse, type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
