"""Keys get nowhere: not into lines of the log, metrics, errors, the audit trail, `ps` or a dump."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import aiohttp

import proglog
from proglog.config import NodeConfig
from proglog.membership import MembershipConfig
from tests.cluster.harness import Server
from tests.pki import Authority
from tests.waiting import until

KEY = base64.b64encode(bytes(range(100, 132))).decode()


def test_what_holds_keys_does_not_show_them(tmp_path: Path) -> None:
    client = Authority(tmp_path).client()
    raw = base64.b64decode(KEY)
    for held in (
        NodeConfig(gossip_keys=(KEY,)),
        MembershipConfig(name="a", keys=(raw,)),
        client.material,
        Authority(tmp_path, "other").pair,
    ):
        shown = f"{held!r} {held}"
        assert KEY not in shown
        assert repr(raw) not in shown
        assert "PRIVATE" not in shown


async def test_a_node_that_holds_keys_tells_none(tmp_path: Path, monkeypatch) -> None:
    ca = Authority(tmp_path / "pki")
    server, peer, root = ca.server(), ca.peer("n1"), ca.client()
    monkeypatch.setenv("PROGLOG_GOSSIP_KEYS", KEY)
    node = Server(
        tmp_path,
        "n1",
        (
            "--bootstrap",
            "--log-level=debug",
            f"--server-tls-cert-file={server.cert}",
            f"--server-tls-key-file={server.key}",
            f"--server-tls-ca-file={server.ca}",
            f"--peer-tls-cert-file={peer.cert}",
            f"--peer-tls-key-file={peer.key}",
            "--allow-all-clients",
            f"--audit-file={tmp_path / 'audit'}",
        ),
    )
    await node.start()
    try:
        tls = proglog.Tls(ca=root.ca, cert=root.cert, key=root.key)
        told = []
        async with proglog.connect(f"proglog://{node.address}", tls=tls) as log:
            await log.produce(b"x")
        async with aiohttp.ClientSession() as http:
            url = f"https://{node.address}/metrics"
            async with http.get(url, ssl=root.context("http/1.1")) as answer:
                told.append(await answer.text())
        assert "proglog_server_certificate_expires_seconds" in told[0]
        # A key that is broken on purpose: the error says why, and not what the file holds.
        server.key.write_text(server.key.read_text().replace("\n", "\n ", 1)[:-40])
        os.kill(node.process.pid, 1)  # SIGHUP
        await until(lambda: "new files are not used" in node.log, "the broken key is told of")
        told += [
            node.log_path.read_text(),
            (tmp_path / "audit").read_text(),
            Path(f"/proc/{node.process.pid}/cmdline").read_text(),
        ]
        await node.stop()
    finally:
        if node.is_running:
            await node.kill()
    secrets = [KEY, "PRIVATE"]
    for files in (server, peer, root):
        secrets += [line for line in files.key.read_text().splitlines() if len(line) > 30]
    for text in told:
        assert text
        assert not [secret for secret in secrets if secret in text]


def test_no_core_is_dumped_of_what_holds_keys() -> None:
    program = (
        "import ctypes, resource; from proglog.ports import keep_memory_private;"
        "keep_memory_private();"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "(0, 0) 0\n"


def test_asking_is_what_makes_a_process_private() -> None:
    assert not NodeConfig().holds_keys
    assert NodeConfig(gossip_keys=(KEY,)).holds_keys
