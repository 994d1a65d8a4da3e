"""What the original gets wrong about security.

W35, W37 and W39 are in tests/agent/test_security.py, W38 in tests/auth/test_matrix.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import aiohttp
import pytest
from grpclib.const import Status

import proglog
from proglog import errors
from proglog.cli.app import run
from proglog.config import NodeConfig, SecurityConfig
from proglog.errors import ConfigurationError, PermissionDenied
from tests.agent.nodes import some_nodes
from tests.auth import original


def acl(folder: Path, policy: bytes) -> SecurityConfig:
    model, rules = folder / "model.conf", folder / "policy.csv"
    model.write_bytes(original.MODEL)
    rules.write_bytes(policy)
    return SecurityConfig(acl_model_file=model, acl_policy_file=rules)


def test_w34_the_flag_of_the_model_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[NodeConfig] = []
    monkeypatch.setattr("proglog.agent.daemon.run", lambda config, _: started.append(config))
    files = ("--acl-model-file", tmp_path / "m", "--acl-policy-file", tmp_path / "p")
    run(["serve", *map(str, files)])
    security = started[0].security
    assert (security.acl_model_file, security.acl_policy_file) == (tmp_path / "m", tmp_path / "p")


async def test_w34_a_policy_without_its_model_or_a_broken_one_ends_the_start(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigurationError, match="is given without acl-model-file"):
        SecurityConfig(acl_policy_file=tmp_path / "policy.csv")
    async with some_nodes(tmp_path) as nodes:
        broken = acl(tmp_path, b"p, root\n")
        missing = dataclasses.replace(broken, acl_model_file=tmp_path / "none")
        for security, why in (
            (broken, "acl-policy-file line 1"),
            (missing, "acl-model-file .*No such file"),
        ):
            with pytest.raises(ConfigurationError, match=why):
                await nodes.start("a", bootstrap=True, security=security)


async def test_w36_without_tls_probes_pass_and_everybody_is_anonymous(tmp_path: Path) -> None:
    security = acl(tmp_path, b"p, @anonymous, *, produce\n")
    async with some_nodes(tmp_path) as nodes:
        node = await nodes.start("a", bootstrap=True, security=security)
        async with proglog.connect(nodes.url("a")) as log:
            assert await log.produce(b"x") == 0
            with pytest.raises(PermissionDenied, match="'@anonymous' not permitted to consume"):
                await log.read(0)
        async with aiohttp.ClientSession() as http:
            for path in ("/livez", "/readyz", "/startupz"):
                async with http.get(f"http://{node.rpc_addr}{path}") as answer:
                    assert answer.status == 200


def test_w40_every_status_is_one_of_grpc() -> None:
    assert {status.value for status in errors.Status} <= {status.value for status in Status}
