"""Rules and dashboard name what a node really exposes, and a real Prometheus judges the rules."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

from proglog.agent.node import Node
from proglog.config import NodeConfig
from tests import judges
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "proglog"
RULES = CHART / "rules" / "proglog.yaml"
CASES = Path(__file__).parent / "rules" / "cases.yaml"


def rules() -> Iterator[dict]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def dashboard() -> Iterator[str]:
    for panel in json.loads((CHART / "dashboards" / "proglog.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def exposed_by(node: Node) -> set[str]:
    return {sample.name for family in node.metrics.registry.collect() for sample in family.samples}


async def test_what_rules_and_dashboard_ask_for_is_exposed(tmp_path: Path) -> None:
    node = Node(NodeConfig.for_tests(tmp_path))
    await node.start()
    try:
        await until(lambda: node._watch._feed.view, "the node has looked at itself")
        exposed = await asyncio.to_thread(exposed_by, node)
    finally:
        await node.stop()
    # Only the leader of others has followers.
    exposed |= {"proglog_raft_peer_behind_batches", "up"}
    asked = [*dashboard(), *(rule["expr"] for rule in rules())]
    assert len(asked) > 25
    for expression in asked:
        for name in re.findall(r"\bproglog_\w+", expression):
            assert name in exposed, f"{name} in {expression}"


def test_each_alert_fires_and_clears_in_prometheus() -> None:
    done = subprocess.run(
        [judges.program("promtool"), "test", "rules", CASES], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = CASES.read_text()
    for rule in rules():
        assert cases.count(f"alertname: {rule['alert']}") == 2, rule["alert"]


def test_the_dashboards_expressions_are_prometheus(tmp_path: Path) -> None:
    filled = [
        re.sub(r"\$\w+", ".*", expression.replace("$__rate_interval", "5m"))
        for expression in dashboard()
    ]
    recorded = [{"record": f"panel:{i}", "expr": text} for i, text in enumerate(filled)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    done = subprocess.run(
        [judges.program("promtool"), "check", "rules", file], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_runbook() -> None:
    headings = re.findall(r"^### (.*)$", (ROOT / "docs" / "operations.md").read_text(), re.M)
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/operations.md"
        assert anchor in anchors, rule["alert"]
