"""What a service manager is told of a process: systemd's protocol, one datagram a message."""

from __future__ import annotations

import socket
from collections.abc import Mapping


class ServiceManager:
    """Whoever started this process, if it wants to hear of it; else nobody.

    Bad news about a manager is none about the process: what it does not take is lost.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` names its socket in NOTIFY_SOCKET; @ stands for an abstract one."""
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def ready(self) -> None:
        """The process serves."""
        self._tell("READY=1", "STATUS=serves")

    def starting(self, seconds: float) -> None:
        """It will say something again within `seconds`, and is not to be ended before."""
        self._tell(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}", "STATUS=recovers its log")

    def stopping(self) -> None:
        """It ends by itself."""
        self._tell("STOPPING=1", "STATUS=stops")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            try:
                manager.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return
