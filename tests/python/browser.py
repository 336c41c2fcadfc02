"""A headless Chromium that opens a file without a network and tells what it drew; nothing but the standard library drives it."""

import base64
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-headless-shell", "google-chrome", "chrome")
SECONDS = 120  # for one answer: a machine that builds something else takes long to start a browser


def executable():
    """The browser that is installed, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of one browser, over the DevTools protocol through a pair of pipes.

    errors : what scripts threw and what the browser or a script logged as an error
    requests : addresses that the page asked for, apart from itself and what it holds itself (data:, blob:)
    """

    def __init__(self, profile):
        to_browser, ours = os.pipe()
        theirs, from_browser = os.pipe()
        self._write, self._read, self._buffer, self._number = ours, theirs, b"", 0
        self.errors, self.requests, self._url = [], [], None

        def place():  # the protocol is spoken on descriptors 3 and 4, one of which may be a pipe's own number
            high = [os.dup(descriptor) for descriptor in (to_browser, from_browser)]
            for number, descriptor in zip((3, 4), high):
                os.dup2(descriptor, number)

        command = [executable(), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        offline = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions"]
        self._process = subprocess.Popen(
            [*command, *offline, "--window-size=1200,1000", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place, close_fds=False, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._session = None
        [page] = [target for target in self._targets() if target["type"] == "page"]
        self._session = self._ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        self._ask("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    def open(self, path):
        """Opens a file and returns when it has loaded and its scripts have had two frames to draw."""
        self._url = path.resolve().as_uri()
        self._ask("Page.navigate", url=self._url)
        while self.evaluate("location.href + document.readyState") != self._url + "complete":
            time.sleep(0.05)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def evaluate(self, expression):
        """The value of a JavaScript expression, of a promise its result."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def screenshot(self, path):
        """Writes a PNG of the whole page."""
        answer = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self):
        """Ends the browser."""
        self._session = None
        try:
            self._ask("Browser.close")
            self._process.wait(20)
        except (OSError, AssertionError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _targets(self):
        while not (found := self._ask("Target.getTargets")["targetInfos"]):
            time.sleep(0.05)
        return found

    def _ask(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _next(self, method):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], SECONDS)
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, f"the browser does not answer {method}"
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def _note(self, event):
        kind, facts = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(facts["exceptionDetails"])
        elif kind == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.errors.append(facts["entry"])
        elif kind == "Runtime.consoleAPICalled" and facts["type"] in ("error", "assert", "warning"):
            self.errors.append(facts["args"])
        elif kind == "Network.requestWillBeSent":
            address = facts["request"]["url"]
            if address != self._url and not address.startswith(("data:", "blob:")):
                self.requests.append(address)
