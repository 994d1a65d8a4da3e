"""Chromium without a screen, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests import judges
from tests.waiting import until

# Nothing that reaches out of this machine; root needs no sandbox of its own here.
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class Page:
    """One page. What goes wrong in it is kept in `errors`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if (number := told.get("id")) is not None:
                self._answers.pop(number).set_result(told)
            elif told["method"] == "Runtime.exceptionThrown":
                self.errors.append(told["params"]["exceptionDetails"]["exception"]["description"])
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.errors.append(told["params"]["entry"]["text"])

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        told = await answer
        assert "error" not in told, told
        return told["result"]

    async def run(self, expression: str) -> Any:
        """What a JavaScript expression gives; a promise is awaited."""
        told = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def shows(self, text: str) -> None:
        """Until the page says this."""

        async def said() -> bool:
            return text in (await self.run("document.body?.innerText ?? ''"))

        await until(said, f"the page says {text!r}")

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def size(self, width: int, height: int, theme: str) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": theme}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def picture(self, path: Path) -> None:
        told = await self.call("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(told["data"]))


@contextlib.asynccontextmanager
async def page(folder: Path) -> AsyncIterator[Page]:
    """A page of a browser of its own."""
    process = await asyncio.create_subprocess_exec(
        judges.program("chromium-headless-shell"),
        *OPTIONS,
        f"--user-data-dir={folder}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port_file = folder / "DevToolsActivePort"
        await until(lambda: port_file.exists() and port_file.read_text().count("\n"), "it listens")
        port = int(port_file.read_text().split()[0])
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            async with http.put("/json/new") as answer:
                url = (await answer.json())["webSocketDebuggerUrl"]
            async with http.ws_connect(url, max_msg_size=MESSAGE_BYTES_MAX) as socket:
                opened = Page(socket)
                listening = asyncio.create_task(opened.listen())
                for domain in ("Page", "Runtime", "Log"):
                    await opened.call(f"{domain}.enable")
                yield opened
                await socket.close()
                await listening
    finally:
        process.kill()
        await process.wait()
