"""An HTTP/2 peer without manners: frames by hand, over a blocking-free socket."""

from __future__ import annotations

import asyncio
import struct
from typing import Self

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)

from tests.rpc.fakes import Node

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def message(data: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(data)) + data


def frame(kind: int, flags: int, stream_id: int, body: bytes) -> bytes:
    return (
        struct.pack(">I", len(body))[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream_id)
        + body
    )


class RawPeer:
    """Sends any frames; `receive_frames` gives what comes back until the server closes."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.stream_id = -1

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(self.node.host, self.node.port)
        # The server opens with two SETTINGS, and its windows count once they are acknowledged.
        acknowledged = SettingsFrame(0, flags=["ACK"]).serialize()
        self.writer.write(PREFACE + SettingsFrame(0).serialize() + 2 * acknowledged)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.transport.abort()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def headers(self, path: str = "/log.v1.Log/Produce", **changes: str | None) -> bytes:
        """HEADERS that open a new stream."""
        self.stream_id += 2
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "x",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        fields |= {name.replace("__", ":").replace("_", "-"): v for name, v in changes.items()}
        block = self.encoder.encode([(n, v) for n, v in fields.items() if v is not None])
        return HeadersFrame(self.stream_id, block, flags=["END_HEADERS"]).serialize()

    def data(self, data: bytes, *, end: bool = False) -> bytes:
        flags = ["END_STREAM"] if end else []
        return DataFrame(self.stream_id, data, flags=flags).serialize()

    def reset(self) -> bytes:
        return RstStreamFrame(self.stream_id, 8).serialize()

    async def receive(self) -> Frame | None:
        """The next frame, None at the end of the connection."""
        try:
            header = await self.reader.readexactly(9)
            found, length = Frame.parse_frame_header(memoryview(header))
            found.parse_body(memoryview(await self.reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return found

    async def trailers(self, seconds: float = 10) -> dict[str, str]:
        """Headers of the next stream that ends with them."""
        async with asyncio.timeout(seconds):
            while (found := await self.receive()) is not None:
                if isinstance(found, HeadersFrame):
                    fields = dict(self.decoder.decode(found.data))
                    if "END_STREAM" in found.flags:
                        return fields
        raise ConnectionError("the server closed the connection")

    async def goodbye(self, seconds: float = 20) -> GoAwayFrame | None:
        """Reads until the server closes; its GOAWAY if it said one."""
        last = None
        async with asyncio.timeout(seconds):
            while (found := await self.receive()) is not None:
                last = found if isinstance(found, GoAwayFrame) else last
        return last
