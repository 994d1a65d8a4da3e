"""The faults that the Go original's image and chart have, by the numbers of its review: W36, W42.

What Helm makes of the chart is judged in tests/chart; here is what needs no Helm.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import aiohttp
import pytest
import yaml
from grpclib.client import Channel
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from proglog.agent.node import Node
from proglog.config import Address, NodeConfig
from tests.waiting import until

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/proglog"


async def test_w36_probes_of_who_has_no_certificate_pass(tmp_path: Path) -> None:
    """There every call without one was UNAUTHENTICATED, health too: the chart's pods never became
    ready."""
    config = dataclasses.replace(
        NodeConfig.for_tests(tmp_path), health_addr=Address("127.0.0.1", 0), bootstrap=True
    )
    node = Node(config)
    await node.start()
    channel = Channel(*node.rpc_addr)
    try:
        async with aiohttp.ClientSession() as session:
            for path in ("/livez", "/startupz", "/readyz"):
                async with session.get(f"http://{node.health_addr}{path}") as answer:
                    assert answer.status == 200

        async def serves() -> bool:
            answer = await HealthStub(channel).Check(HealthCheckRequest())
            return bool(answer.status == HealthCheckResponse.SERVING)

        await until(serves, "grpc.health.v1 says that it serves")
    finally:
        channel.close()
        await node.stop()


def test_w42_the_image_fetches_nothing_by_an_address() -> None:
    """There one was broken, so that nothing could be built."""
    text = (ROOT / "Dockerfile").read_text()
    steps = "".join(line for line in text.splitlines(keepends=True) if line[0] != "#")
    assert not re.search(r"https?:", steps)
    assert not re.search(r"\b(curl|wget|ADD)\b", steps)
    assert re.search(r"--require-hashes", steps)


def test_w42_the_chart_has_no_name_of_a_release() -> None:
    for path in (CHART / "templates").rglob("*"):
        if path.is_file():
            text = path.read_text()
            # Its pods would be called so only in a release of that name.
            assert not re.search(r"proglog-\d|proglog\.\{\{", text), path
            assert "v1beta1" not in text, path


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("statefulset.yaml", "terminationGracePeriodSeconds"),
        ("statefulset.yaml", "preStop"),
        ("statefulset.yaml", "resources:"),
        ("statefulset.yaml", "secretName"),
        ("pdb.yaml", "PodDisruptionBudget"),
        ("certificate.yaml", "cert-manager.io/v1"),
    ],
)
def test_w42_what_was_missing_is_there(file: str, wanted: str) -> None:
    assert wanted in (CHART / "templates" / file).read_text()


def test_w42_the_values_say_it_too() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["resources"]["limits"]
    assert values["podDisruptionBudget"]["enabled"]
    assert values["tls"]["mode"] in {"off", "optional", "required"}
    # A registry's path, and not a repository of source.
    assert re.fullmatch(r"[a-z0-9./-]+", values["image"]["repository"])
    assert "github" not in values["image"]["repository"]
