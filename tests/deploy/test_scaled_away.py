"""Whether a pod leaves or only stops: what `proglog drain` asks the API server, and makes of it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from proglog.k8s import statefulset
from proglog.k8s.statefulset import Doubt, is_scaled_away
from tests.deploy.certificates import certificate_for


class ApiServer:
    """Answers for one StatefulSet over TLS, to who has the token."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}
        self.status = 200
        self.asked: list[str] = []
        self.environment: dict[str, str] = {}

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if request.headers["Authorization"] != "Bearer secret":
            return web.Response(status=401)
        return web.json_response(self.answer, status=self.status)


def certificate(folder: Path) -> ssl.SSLContext:
    """Of an API server at 127.0.0.1; its authority is in ca.crt."""
    made, key = certificate_for("127.0.0.1")
    (folder / "ca.crt").write_bytes(made)
    (folder / "key").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "key")
    return context


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "namespace").write_text("logs")
    return tmp_path


@pytest.fixture
async def api(account: Path) -> AsyncIterator[ApiServer]:
    server = ApiServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate(account))
    await site.start()
    host, port = runner.addresses[0][:2]
    server.environment = {
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": str(port),
        "PROGLOG_STATEFULSET": "my-log",
        "POD_NAME": "my-log-3",
    }
    yield server
    await runner.cleanup()


@pytest.mark.parametrize(
    ("spec", "metadata", "away"),
    [
        ({"replicas": 3}, {}, True),
        ({"replicas": 4}, {}, False),
        ({"replicas": 5}, {}, False),
        ({"replicas": 3, "ordinals": {"start": 1}}, {}, False),
        ({"replicas": 3, "ordinals": {"start": 4}}, {}, True),
        ({"replicas": 0}, {}, False),  # a pause
        ({}, {}, True),  # one replica
        ({"replicas": 3}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}, False),  # all of it goes
    ],
)
async def test_only_what_the_set_does_without_leaves(
    api: ApiServer, account: Path, spec: dict[str, Any], metadata: dict[str, Any], away: bool
) -> None:
    api.answer = {"metadata": metadata, "spec": spec}
    assert await is_scaled_away(api.environment, account) is away
    assert api.asked == ["/apis/apps/v1/namespaces/logs/statefulsets/my-log"]


async def test_doubt_is_said(
    api: ApiServer, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def doubt(**changes: str) -> str:
        with pytest.raises(Doubt) as raised:
            await is_scaled_away({**api.environment, **changes}, account)
        return str(raised.value)

    assert "no pod of the chart" in await doubt(PROGLOG_STATEFULSET="")
    assert "'my-log-3' is none of" in await doubt(PROGLOG_STATEFULSET="other")
    assert "'my-log' is none of" in await doubt(POD_NAME="my-log")
    assert "no StatefulSet" in await doubt()
    api.status = 403
    assert await doubt() == "the API server answered 403"
    assert "did not say: Cannot connect" in await doubt(KUBERNETES_SERVICE_PORT="1")
    (account / "token").unlink()
    assert "did not say: " in await doubt()


async def test_a_foreign_certificate_is_not_believed(
    api: ApiServer, account: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    certificate(other := tmp_path_factory.mktemp("other"))
    (account / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    with pytest.raises(Doubt, match="certificate"):
        await is_scaled_away(api.environment, account)
    assert api.asked == []


async def test_silence_is_doubt(
    api: ApiServer, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statefulset, "_SECONDS_MAX", 0.0)
    with pytest.raises(Doubt, match="did not say: TimeoutError"):
        await is_scaled_away(api.environment, account)
