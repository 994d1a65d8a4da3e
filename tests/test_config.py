"""Settings check themselves, and say which is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proglog import limits
from proglog.config import Address, LogConfig, NodeConfig
from proglog.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:8400", Address("localhost", 8400)),
        ("10.0.0.1:1", Address("10.0.0.1", 1)),
        ("[::1]:8400", Address("::1", 8400)),
        (":0", Address("127.0.0.1", 0)),
        ("node-1.example.:1", Address("node-1.example.", 1)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


def test_a_default_port_makes_the_port_optional() -> None:
    assert Address.parse("node-1", port=8400) == Address("node-1", 8400)
    assert Address.parse("[::1]", port=8400) == Address("::1", 8400)
    assert Address.parse("node-1:1", port=8400) == Address("node-1", 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        "host:x",
        "host:65536",
        "::1:8400",
        "a b:1",
        "a..b:1",
        ".:1",
        f"{'a' * 64}:1",
        f"{'a.' * 127}b:1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"rpc_addr is '.*'(...)?: expected host:port"):
        Address.parse(text, "rpc_addr")


@pytest.mark.parametrize(
    "wrong",
    [
        {"segment_bytes": 4096},
        {"segment_bytes": limits.segment_bytes_max + 1},
        {"segment_batches": limits.segment_batches_min - 1},
        {"segment_batches": limits.segment_batches_max + 1},
        {"retention_bytes": limits.segment_bytes_default - 1},
        {"retention_seconds": 0},
        {"retention_check_seconds": 0},
    ],
    ids=str,
)
def test_a_wrong_log_setting_is_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=f"^{_key(name)} is .*: expected ") as raised:
        LogConfig(**wrong)
    assert raised.value.facts == {"setting": _key(name)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"bootstrap_expect": 1},
        {"bootstrap_expect": 6},
        {"node_name": "a/b"},
        {"node_name": "-a"},
        {"node_name": "a" * 129},
        {"rpc_port": -1},
        {"rpc_port": 65536},
        {"drain_seconds": -1},
        {"http_addr": Address("127.0.0.1", 8400)},
        {"health_addr": Address("127.0.0.1", 8400)},
        {"bind_addr": Address("0.0.0.0", 8401)},
        {"bind_addr": Address("::", 8401)},
        {"advertise_addr": Address("::ffff:0.0.0.0", 8401)},
        {"start_join_addrs": ("a:1", "b")},
        {"start_join_addrs": ("a:0",)},
        {"start_join_addrs": (":1",)},
    ],
    ids=str,
)
def test_a_wrong_node_setting_is_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=f"^{_key(name)} is .*: expected ") as raised:
        NodeConfig(**wrong)
    assert raised.value.facts == {"setting": _key(name)}


def _key(name: str) -> str:
    """What an operator calls a setting."""
    keys = {"drain_seconds": "drain-timeout", "retention_seconds": "retention-time"}
    return keys.get(name, name.removesuffix("_seconds").replace("_", "-"))


def test_what_others_are_told() -> None:
    everywhere = Address("::", 8401)
    assert NodeConfig(bind_addr=Address("a", 1)).told_addr(7) == Address("a", 7)
    for told, expected in (("b", "b:7"), ("b:9", "b:9"), ("[::1]", "[::1]:7")):
        config = NodeConfig(bind_addr=everywhere, advertise_addr=Address.parse(told, port=0))
        assert str(config.told_addr(7)) == expected


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_loopback(host: str) -> None:
    assert Address(host, 1).is_loopback


@pytest.mark.parametrize("host", ["127.example.com", "10.0.0.1", "::", "0.0.0.0", "127"])
def test_what_is_not_loopback(host: str) -> None:
    assert not Address(host, 1).is_loopback


def test_the_defaults_are_right() -> None:
    assert NodeConfig().rpc_addr == Address("127.0.0.1", 8400)
    assert NodeConfig(bind_addr=Address("10.0.0.1", 1)).rpc_addr == Address("10.0.0.1", 8400)
    tiny = NodeConfig.for_tests(Path("x"))
    assert tiny.log == LogConfig.for_tests()
    assert tiny.rpc_addr.port == 0
