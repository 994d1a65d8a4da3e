"""`proglog k8s-hooks`: webhooks for Metacontroller."""

from __future__ import annotations

import asyncio
import signal
import sys

from aiohttp import web

from proglog.cli.connection import run_on_loop
from proglog.cli.parameters import ListenAddress
from proglog.config import Address
from proglog.errors import ConfigurationError, why_not_bound
from proglog.k8s.hooks import application
from proglog.net.listening import listen
from proglog.observability import logging

_LISTEN = Address("127.0.0.1", 8080)


def k8s_hooks(*, listen: ListenAddress = _LISTEN) -> int:
    """Serve the hooks that give each pod of a StatefulSet a Service of its own, for Metacontroller.

    Parameters
    ----------
    listen
        Where to; [::] is every address.
    """
    logging.configure("info", "auto")
    return run_on_loop(_serve(listen))


async def _serve(address: Address) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(application(), access_log=None)
    await runner.setup()
    try:
        try:
            listener = listen(*address)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {address}: {why_not_bound(error)} another --listen"
            ) from None
        await web.SockSite(runner, listener).start()
        print(f"listens on {Address(*listener.getsockname()[:2])}", file=sys.stderr, flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()
    return 0
