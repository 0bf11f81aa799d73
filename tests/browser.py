"""A headless Chromium, controlled over its DevTools protocol: pages as a person sees them, at any width.

It speaks through a pipe (`--remote-debugging-pipe`), so that it needs no port and no library.
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import itertools
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from tests.programs import program

WIDTHS: Final = (360, 768, 1280)
"""CSS pixels: a small phone, a tablet, a desktop."""
_FLAGS: Final = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it does not start as root otherwise; it sees our own pages alone
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--lang=en-US",
    "about:blank",
)
_KEYS: Final = {"Tab": 9, "Enter": 13, "Escape": 27}
_FIRST_FREE: Final = 10
"""The least descriptor for the pipe's ends: in the browser they become 3 and 4."""


class Page:
    """One tab, and what it asked for and complained about."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._frame = ""
        self._attaching: list[asyncio.Task[None]] = []
        self._frame_loaded = asyncio.Event()
        self.requests: dict[str, str] = {}
        """Request → URL of what left the browser, the page itself among them."""
        self.blocked: list[str] = []
        """URLs that a policy of the page kept in the browser."""
        self.complaints: list[str] = []
        """Errors of scripts, and what a policy forbade."""
        self.loaded = asyncio.Event()

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, which may be a promise."""
        answer = await self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def evaluate_in_frame(self, expression: str) -> Any:
        """The same in the page's sandboxed frame, which itself may run no script."""
        await asyncio.wait_for(self._frame_loaded.wait(), 20)
        answer = await self._call(
            "Runtime.evaluate", session=self._frame, expression=expression, returnByValue=True, userGesture=True
        )
        return answer["result"].get("value")

    async def until(self, expression: str, within: float = 20) -> Any:
        """Wait until a JavaScript expression is true, looked at once for each frame that is drawn."""
        return await asyncio.wait_for(
            self.evaluate(
                "new Promise(done => { const look = () => { const found = "
                f"{expression}; found ? done(found) : requestAnimationFrame(look); }}; look(); }})"
            ),
            within,
        )

    async def press(self, key: str) -> None:
        """Press and release one key."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        await self._call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        await self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    async def overflow(self) -> list[str]:
        """Elements wider than the window, which a person would have to scroll to; empty when everything fits."""
        found: list[str] = await self.evaluate(_OVERFLOW)
        return found

    async def picture(self) -> bytes:
        """The window as a PNG."""
        return base64.b64decode((await self._call("Page.captureScreenshot", format="png"))["data"])

    def noted(self, session: str, method: str, about: dict[str, Any]) -> None:
        """Take an event of the protocol."""
        match method:
            case "Network.requestWillBeSent":
                self.requests[about["requestId"]] = about["request"]["url"]
            case "Network.loadingFailed" if "blockedReason" in about:
                self.blocked.append(self.requests.pop(about["requestId"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"].get("exception", about["exceptionDetails"])))
            case "Log.entryAdded" if about["entry"]["level"] == "error":
                self.complaints.append(about["entry"]["text"])
            case "Page.loadEventFired":
                (self._frame_loaded if session == self._frame else self.loaded).set()
            case "Target.attachedToTarget" if about["targetInfo"]["type"] == "iframe":
                self._attaching.append(asyncio.create_task(self._attach(about["sessionId"])))

    async def _attach(self, frame: str) -> None:
        """A frame with an origin of its own is a target of its own, which waits until we listen."""
        self._frame = frame
        for method in ("Network.enable", "Page.enable", "Runtime.runIfWaitingForDebugger"):
            await self._call(method, session=frame)


# What is cut off by an ancestor with `overflow: hidden` cannot be seen, so it counts as well, unless that ancestor
# shortens its text on purpose (`text-overflow: ellipsis`).
_OVERFLOW: Final = """
(() => {
  const root = document.documentElement, width = root.clientWidth, found = [];
  if (root.scrollWidth > width) found.push(`the page is ${root.scrollWidth} wide`);
  for (const each of document.body.querySelectorAll("*")) {
    const box = each.getBoundingClientRect();
    const shortened = [...function*(at) { while (at) { yield at; at = at.parentElement; } }(each)]
      .some(at => getComputedStyle(at).textOverflow === "ellipsis");
    if (box.width && !shortened && (box.right > width + 0.5 || box.left < -0.5))
      found.push(`${each.tagName.toLowerCase()} ${each.id || each.className} from ${box.left} to ${box.right}`);
  }
  return found;
})()
"""


class Browser:
    """A running Chromium."""

    def __init__(self, reader: asyncio.StreamReader, writing: int) -> None:
        self._reader = reader
        self._writing = writing
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._tabs: asyncio.Queue[str] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def page(self, url: str, width: int, *, dark: bool = False, frame: bool = False) -> AsyncIterator[Page]:
        """A loaded page in a window of this width (CSS pixels), for a person who likes it dark, or not.

        With `frame`, its sandboxed frame is watched as well; that one has to stay until the end of the block.
        """
        target = (await self._call(None, "Target.createTarget", url="about:blank"))["targetId"]
        session = (await self._call(None, "Target.attachToTarget", targetId=target, flatten=True))["sessionId"]

        async def call(method: str, session: str = session, **parameters: Any) -> dict[str, Any]:
            self._pages[session] = page
            return await self._call(session, method, **parameters)

        page = Page(call)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await call(f"{domain}.enable")
        if frame:
            await call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await call("Emulation.setEmulatedMedia", features=[scheme])
        await call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        await call("Page.navigate", url=url)
        await asyncio.wait_for(page.loaded.wait(), 30)
        try:
            yield page
        finally:
            await self._call(None, "Target.closeTarget", targetId=target)

    async def opens(self, url: str) -> None:
        """Wait until a tab shows this address."""
        await self._call(None, "Target.setDiscoverTargets", discover=True)
        async with asyncio.timeout(20):
            while await self._tabs.get() != url:
                pass

    async def listen(self) -> None:
        """Dispatch what the browser sends until it ends."""
        while message := await self._next():
            if (number := message.get("id")) is not None:
                self._answers.pop(number).set_result(message)
            elif message["method"] in ("Target.targetCreated", "Target.targetInfoChanged"):
                self._tabs.put_nowait(message["params"]["targetInfo"]["url"])
            elif page := self._pages.get(session := message.get("sessionId", "")):
                page.noted(session, message["method"], message.get("params", {}))

    async def _next(self) -> dict[str, Any] | None:
        try:
            message: dict[str, Any] = json.loads((await self._reader.readuntil(b"\0"))[:-1])
        except asyncio.IncompleteReadError:
            return None
        return message

    async def _call(self, session: str | None, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        answered = await asyncio.wait_for(answer, 30)
        assert "error" not in answered, f"{method}: {answered['error']}"
        result: dict[str, Any] = answered["result"]
        return result


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A Chromium with a profile of its own, until the end of the block; without one, the test is skipped."""
    chromium = program("chromium", "chromium-browser", "google-chrome", package="chromium")
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True))
        ends = [*os.pipe(), *os.pipe()]
        for at, low in enumerate(ends):
            ends[at] = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
            os.close(low)
        commands, told, heard, events = ends
        stack.callback(os.close, told)
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{events}'),
            *(chromium, f"--user-data-dir={profile}", *_FLAGS),
            pass_fds=(commands, events),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(events)
        reader = asyncio.StreamReader(limit=2**28)
        pipe = stack.enter_context(os.fdopen(heard, "rb", buffering=0))
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        found = Browser(reader, told)
        listening = asyncio.create_task(found.listen())
        try:
            yield found
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()
            await listening
            transport.close()
