"""Whether a pod leaves or only stops: what `proglog drain` asks the API server, and makes of it."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proglog.cli import kubernetes
from proglog.cli.kubernetes import Doubt, is_scaled_away


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
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(made.public_bytes(pem))
    (folder / "key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
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
    monkeypatch.setattr(kubernetes, "_SECONDS_MAX", 0.0)
    with pytest.raises(Doubt, match="did not say: TimeoutError"):
        await is_scaled_away(api.environment, account)
