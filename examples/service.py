"""A web service whose state is a log: what happened is appended, and what is follows from it.

python examples/service.py proglog://127.0.0.1:8400
curl -X POST localhost:8000/accounts/ann -d '{"amount": 5}'
curl localhost:8000/accounts/ann
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator

from aiohttp import web

import proglog


class Accounts:
    """Balances, as far as the log was read: up to `position`."""

    def __init__(self, log: proglog.Log) -> None:
        self._log = log
        self._moved = asyncio.Condition()
        self.balances: Counter[str] = Counter()
        self.position = 0

    async def follow(self) -> None:
        async for record in self._log.consume("earliest"):
            event = json.loads(record.value)
            self.balances[event["name"]] += event["amount"]
            async with self._moved:
                self.position = record.offset + 1
                self._moved.notify_all()

    async def change(self, name: str, amount: int) -> int:
        """The balance after this change."""
        event = json.dumps({"name": name, "amount": amount}).encode()
        offset = await self._log.produce(event, key=name.encode(), timeout_seconds=5)
        async with self._moved:
            await self._moved.wait_for(lambda: self.position > offset)
        return self.balances[name]


ACCOUNTS = web.AppKey("accounts", Accounts)


async def change(request: web.Request) -> web.Response:
    amount = int((await request.json())["amount"])
    balance = await request.app[ACCOUNTS].change(request.match_info["name"], amount)
    return web.json_response({"balance": balance})


async def show(request: web.Request) -> web.Response:
    return web.json_response(
        {"balance": request.app[ACCOUNTS].balances[request.match_info["name"]]}
    )


def make_app(log: proglog.Log) -> web.Application:
    """`log` is entered when the service starts, and closed when it ends."""

    async def run(app: web.Application) -> AsyncIterator[None]:
        async with log:
            app[ACCOUNTS] = Accounts(log)
            following = asyncio.create_task(app[ACCOUNTS].follow())
            yield
            following.cancel()
            await asyncio.wait([following])

    app = web.Application()
    app.cleanup_ctx.append(run)
    app.add_routes([web.post("/accounts/{name}", change), web.get("/accounts/{name}", show)])
    return app


if __name__ == "__main__":
    web.run_app(make_app(proglog.connect(sys.argv[1])), host="127.0.0.1", port=8000)
