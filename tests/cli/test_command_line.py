"""What the commands make of a command line: settings, their sources, and a user's mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from proglog.cli.app import run
from proglog.cli.serve import _welcome
from proglog.config import Address, LogConfig, NodeConfig
from proglog.errors import StorageFailed
from proglog.raft.configuration import Configuration, Server
from tests.ports import free_port

if TYPE_CHECKING:
    from proglog.agent.node import Node

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PROGLOG_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[NodeConfig]:
    """Nodes that `serve` would have started."""
    configs: list[NodeConfig] = []

    def start(config: NodeConfig, announce: object) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr("proglog.agent.daemon.run", start)
    return configs


# --- serve: flags, environment, file -------------------------------------------------------------


def test_serve_without_any_setting(started: list[NodeConfig]) -> None:
    assert run(["serve"]) == 0
    assert started == [NodeConfig()]
    assert started[0].rpc_addr == Address("127.0.0.1", 8400)
    assert started[0].data_dir == Path("data")


SETTINGS = {
    "data-dir": "/srv/log",
    "node-name": "n1",
    "cluster-name": "c1",
    "bind-addr": "0.0.0.0:7401",
    "advertise-addr": "n1.example",
    "rpc-port": "7400",
    "http-addr": "[::1]:7080",
    "health-addr": "[::]:7402",
    "http-hosts": "log.example",
    "start-join-addrs": "a:8401,b:8401",
    "bootstrap-expect": "3",
    "gossip-keys": "MDEyMzQ1Njc4OWFiY2RlZg==",
    "dead-server-after": "2h",
    "segment-bytes": "64MiB",
    "segment-batches": "1000",
    "retention-bytes": "10GiB",
    "retention-time": "7d",
    "drain-timeout": "90s",
    "log-level": "debug",
    "log-format": "json",
}
READ = NodeConfig(
    data_dir=Path("/srv/log"),
    node_name="n1",
    cluster_name="c1",
    bind_addr=Address("0.0.0.0", 7401),
    advertise_addr=Address("n1.example", 0),
    rpc_port=7400,
    http_addr=Address("::1", 7080),
    health_addr=Address("::", 7402),
    http_hosts=("log.example",),
    start_join_addrs=("a:8401", "b:8401"),
    bootstrap_expect=3,
    gossip_keys=("MDEyMzQ1Njc4OWFiY2RlZg==",),
    dead_server_after_seconds=7200.0,
    drain_seconds=90,
    log=LogConfig(
        segment_bytes=64 * 2**20,
        segment_batches=1000,
        retention_bytes=10 * 2**30,
        retention_seconds=7 * 86400,
    ),
    log_level="debug",
    log_format="json",
)


def test_every_setting_comes_by_flag_variable_and_file_alike(
    started: list[NodeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["serve", *(f"--{key}={value}" for key, value in SETTINGS.items())]) == 0
    file = tmp_path / "node.yaml"
    file.write_text("".join(f'{key}: "{value}"\n' for key, value in SETTINGS.items()))
    assert run(["serve", "--config-file", str(file)]) == 0
    for key, value in SETTINGS.items():
        monkeypatch.setenv(f"PROGLOG_{key.upper().replace('-', '_')}", value)
    assert run(["serve"]) == 0
    assert started == [READ] * 3


def test_where_to_listen_without_what_to_tell_is_refused(
    started: list[NodeConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--bind-addr", "[::]:8401"]) == 2
    assert "bind-addr is [::]:8401: expected advertise-addr with it" in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("node.yaml", "rpc-port: 1\nnode-name: file\nhttp-hosts: [a, b]\nretention-time: 7d\n"),
        ("node.yml", "{rpc-port: 1, node-name: file, http-hosts: [a, b], retention-time: 7d}"),
        (
            "node.toml",
            'rpc-port = 1\nnode-name = "file"\nhttp-hosts = ["a", "b"]\nretention-time = "7d"\n',
        ),
    ],
)
def test_flags_win_over_environment_and_both_over_the_file(
    name: str,
    text: str,
    started: list[NodeConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert run(["serve", "--config-file", str(file)]) == 0
    monkeypatch.setenv("PROGLOG_CONFIG_FILE", str(file))
    monkeypatch.setenv("PROGLOG_NODE_NAME", "environment")
    monkeypatch.setenv("PROGLOG_RPC_PORT", "2")
    assert run(["serve"]) == 0
    assert run(["serve", "--rpc-port", "3", "--retention-time", "none"]) == 0
    assert [(c.rpc_port, c.node_name, c.log.retention_seconds) for c in started] == [
        (1, "file", 604800),
        (2, "environment", 604800),
        (3, "environment", None),
    ]
    assert all(config.http_hosts == ("a", "b") for config in started)


TWO = ("a:1", "b:2")
ONE = ("a:1",)


@pytest.mark.parametrize("key", ["start-join-addrs", "http-hosts", "gossip-keys"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a:1", ONE),
        ("a:1,b:2", TWO),
        (" a:1, b:2 ", TWO),
        ("a:1 b:2", TWO),
        ("", ()),
        ("none", ()),
        (["a:1"], ONE),
        (["a:1", "b:2"], TWO),
        (["a:1,b:2"], TWO),
        (["a:1, b:2", "a:1"], TWO + ONE),
        ([], ()),
    ],
    ids=str,
)
def test_several_values_are_given_alike_by_flag_environment_and_file(
    key: str,
    text: str | list[str],
    value: tuple[str, ...],
    started: list[NodeConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("node.yaml", "node.toml"):
        file = tmp_path / name
        file.write_text(f"{key}{':' if name.endswith('yaml') else ' ='} {json.dumps(text)}\n")
        assert run(["serve", "--config-file", str(file)]) == 0
    flags = [text] if isinstance(text, str) else text
    assert run(["serve", *(word for flag in flags for word in (f"--{key}", flag))]) == 0
    monkeypatch.setenv("PROGLOG_" + key.replace("-", "_").upper(), ",".join(flags))
    assert run(["serve"]) == 0
    assert [getattr(config, key.replace("-", "_")) for config in started] == 4 * [value]


def test_an_empty_file_sets_nothing(started: list[NodeConfig], tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text("# nothing\n")
    assert run(["serve", "--config-file", str(file)]) == 0
    assert started == [NodeConfig()]


@pytest.mark.parametrize(
    ("names", "is_ready", "settings", "said"),
    [
        ("a", True, {}, "Node a serves the log in data (offsets 2 to 6)."),
        ("", False, {"bootstrap_expect": 3}, "Node a waits until 3 new nodes see each other"),
        ("", False, {"bootstrap": False}, "Node a waits until a cluster adds it."),
        ("ab", False, {}, "Node a looks for the leader of its cluster: a majority of a, b must"),
        ("ab", True, {}, "Node a serves the log in data (offsets 2 to 6)."),
    ],
)
def test_the_welcome_says_whether_the_node_serves_yet(
    names: str,
    is_ready: bool,
    settings: dict[str, Any],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replica = SimpleNamespace(
        identity=SimpleNamespace(name="a"),
        leadership=SimpleNamespace(
            configuration=Configuration(tuple(Server(name, name, "h:1") for name in names))
        ),
        is_ready=is_ready,
        earliest=2,
        next_offset=7,
    )
    addresses = {"rpc_addr": Address("127.0.0.1", 8400), "http_addr": None}
    node = cast("Node", SimpleNamespace(replica=replica, **addresses))
    _welcome(NodeConfig(**settings), quiet=False)(node)
    welcome = capsys.readouterr().out
    assert welcome.startswith(said)
    assert ("/v1/records" in welcome) is is_ready
    assert ("/readyz" in welcome) is not is_ready


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["serve", "--rpc-prt", "1"], "Did you mean --rpc-port?"),
        (["serve", "--rpc-port", "x"], 'Invalid value for --rpc-port: unable to convert "x"'),
        (["serve", "--rpc-port", "70000"], "rpc-port is 70000: expected 0 to 65535"),
        (["serve", "--segment-bytes", "3parsecs"], "'3parsecs' is not like 128MiB"),
        (["serve", "--retention-bytes", "1MiB"], "expected at least one segment"),
        (["serve", "--http-addr", "127.0.0.1:8400"], "expected another address than"),
        (["serve", "--node-name", "a b"], "node-name is 'a b'"),
        (["serve", "--log-level", "loud"], '"loud"'),
        (["serve", "--config-file", "/absent.yaml"], "/absent.yaml: No such file"),
        (["serve", "--config-file", "/etc/passwd"], "must end in .yaml, .yml or .toml"),
        (["prodcue"], 'Did you mean "produce"?'),
        (["consume", "--json", "--raw"], "--json and --raw exclude each other"),
        (["consume", "--limit", "-1"], "--limit is -1"),
        (["consume", "--offset", "-1"], "--offset is -1"),
        (["consume", "--offset", "0", "--timestamp", "0"], "--offset and --timestamp exclude"),
        (["serve", "--start-join-addrs", "a:1,b"], "start-join-addrs is 'b': expected host:port"),
        (
            ["serve", "--start-join-addrs", "a:1,,b:2"],
            "--start-join-addrs: a value is missing: expected WORD[,...]",
        ),
        (
            ["serve", "--http-hosts", "a", "--http-hosts", ","],
            "--http-hosts: a value is missing",
        ),
        (["serve", "--http-hosts", "http://a"], "http-hosts is 'http://a': expected host"),
        (["serve", "--http-hosts", "a,:1"], "http-hosts is ':1': expected a name"),
        (["serve", "--gossip-keys", "AAAA,"], "--gossip-keys: a value is missing"),
        (["serve", "--start-join-addrs", "foo"], "is 'foo': expected host:port"),
        (["consume", "--timestamp", "noon"], "'noon' is not like 2026"),
        (["consume", "--server", "a:b"], "'a:b' is not like host:port"),
        (["consume", "--server", "a:1,"], "--server: a value is missing: expected HOST:PORT[,...]"),
        (["consume", "--server", ""], "--server: a value is missing"),
        (["leave", "--server", "a:1,b:1"], "'a:1,b:1' is not like host:port"),
        (["produce", "/absent"], '"/absent" does not exist'),
        (["dev", "--port-base", "100"], "--port-base is 100: expected 321 to 65514"),
        (["dev", "--port-base", "65515"], "--port-base is 65515: expected 321 to 65514"),
        (["cluster", "add", "nonsense"], "'nonsense' is not like host:port"),
        (["verify"], "requires an argument"),
    ],
)
def test_a_wrong_command_line_is_said_to_be_so(
    words: list[str],
    complaint: str,
    started: list[NodeConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(words) == 2
    assert started == []
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("proglog")
    assert complaint in output.err


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.yaml", "rpc-port: [", "while parsing"),
        ("a.yaml", "- rpc-port", "expected keys with values"),
        ("a.yaml", "rpc-prot: 1", "rpc-prot"),
        ("a.yaml", "rpc-port: 1\nrpc-port: 2", "rpc-port is set twice"),
        ("a.yaml", "data_dir: x", "unknown key 'data_dir'. Did you mean data-dir?"),
        ("a.yaml", "no-bootstrap: true", "unknown key 'no-bootstrap'"),
        ("a.yaml", "config-file: b.yaml", "unknown key 'config-file'"),
        ("a.yaml", "5: 5", "unknown key 5"),
        ("a.yaml", "http-hosts: 5", "http-hosts: expected words"),
        ("a.yaml", "http-hosts: [5]", "http-hosts: expected words"),
        ("a.yaml", "http-hosts: [[a]]", "http-hosts: expected words"),
        ("a.yaml", "http-hosts: {a: b}", "http-hosts: expected words"),
        ("a.yaml", "http-hosts:", "http-hosts: expected words"),
        ("a.yaml", "http-hosts: [a, 'b,,c']", "[http-hosts]: a value is missing"),
        ("a.yaml", "retention-bytes: many", "[retention-bytes]: 'many' is not like 128MiB"),
        ("a.toml", "rpc-port = ", "Invalid value"),
        ("a.toml", 'rpc-port = "x"', "rpc-port"),
        ("a.toml", "[log]\nx = 1", "log"),
    ],
)
def test_a_wrong_file_is_named(
    name: str,
    text: str,
    complaint: str,
    started: list[NodeConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert run(["serve", "--config-file", str(file)]) == 2
    assert started == []
    error = capsys.readouterr().err
    assert str(file) in error
    assert complaint in error


def test_a_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: NodeConfig, announce: object) -> int:
        raise StorageFailed("the disk is broken")

    monkeypatch.setattr("proglog.agent.daemon.run", fail)
    assert run(["serve"]) == 1
    assert capsys.readouterr().err == "proglog: the disk is broken\n"


def test_ctrl_c_is_130_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(config: NodeConfig, announce: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("proglog.agent.daemon.run", interrupt)
    assert run(["serve"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "module"),
    [(["serve"], "cyclopts"), (["serve"], "uvloop"), (["consume"], "yaml"), (["dev"], "grpclib")],
)
def test_ctrl_c_during_an_import_is_no_different(
    words: list[str], module: str, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text(
        "import os, signal\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt: pass  # lost, as in a callback of the import system\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ended = _proglog(*words, PYTHONPATH=path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert run(["consume", "--server", address]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert address in error


# --- the program ---------------------------------------------------------------------------------


def _proglog(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proglog.cli", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_names_the_commands_and_imports_none() -> None:
    shown = _proglog("--help", PYTHONPROFILEIMPORTTIME="1")
    assert shown.returncode == 0
    for command in ("serve", "produce", "consume", "cluster", "verify", "repair"):
        (line,) = (line for line in shown.stdout.splitlines() if line.startswith(f"│ {command} "))
        assert len(line.split()) > 4, "each says what it does"
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "proglog.cli.app" in imported
    assert not imported & {"proglog.cli.serve", "proglog.client", "grpclib", "aiohttp", "uvloop"}


def test_version() -> None:
    shown = _proglog("--version")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("proglog ")


def test_optimised_bytecode_is_refused() -> None:
    refused = _proglog("--version", PYTHONOPTIMIZE="1")
    assert refused.returncode == 2
    assert "assertions" in refused.stderr
