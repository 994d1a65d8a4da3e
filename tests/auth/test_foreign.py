"""Clients of others at a port with TLS: curl and grpcio."""

from __future__ import annotations

import asyncio
import json
import subprocess

import grpc
import pytest

from proglog._generated.log import v1
from tests import judges
from tests.auth.test_matrix import Served, authorities, served
from tests.pki import Files

__all__ = ["authorities", "served"]

pytestmark = pytest.mark.parametrize("served", [True], ids=["required"], indirect=True)


async def curl(served: Served, path: str, *options: object) -> subprocess.CompletedProcess[str]:
    command = [judges.program("curl"), "--silent", "--show-error", "--max-time", "20"]
    command += ["--cacert", served.clients.ca, *options, f"https://127.0.0.1:{served.port}{path}"]
    return await asyncio.to_thread(
        subprocess.run, list(map(str, command)), capture_output=True, text=True, check=False
    )


async def test_curl_offers_both_protocols_and_gets_http(served: Served) -> None:
    root = served.clients.client("root")
    pair = ("--cert", root.cert, "--key", root.key)
    found = await curl(served, "/v1/log", *pair)
    assert json.loads(found.stdout)["log"] == "default"
    nobody = served.clients.client("nobody")
    refused = await curl(served, "/v1/log", "--cert", nobody.cert, "--key", nobody.key)
    assert json.loads(refused.stdout)["code"] == "PERMISSION_DENIED"
    without = await curl(served, "/livez")
    assert without.returncode != 0
    assert "certificate required" in without.stderr.lower().replace("_", " ")


async def test_grpcio(served: Served) -> None:
    def ask(files: Files) -> bytes:
        credentials = grpc.ssl_channel_credentials(
            files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
        )
        with grpc.secure_channel(f"127.0.0.1:{served.port}", credentials) as channel:
            return channel.unary_unary("/log.v1.Log/Consume")(b"", timeout=20)

    answer = await asyncio.to_thread(ask, served.clients.client("root"))
    assert v1.ConsumeResponse.parse(answer).record.value == b"x"
    for who, code in (
        (served.clients.client("nobody"), grpc.StatusCode.PERMISSION_DENIED),
        (served.peers.client("root", trusts=served.clients), grpc.StatusCode.UNAVAILABLE),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            await asyncio.to_thread(ask, who)
        assert refused.value.code() is code
