"""The hooks of Metacontroller, in the shapes that it documents and the original's annotations."""

from __future__ import annotations

import asyncio
import copy
import signal
import sys
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer

from proglog import limits
from proglog.k8s.hooks import application

STATEFULSET = {
    "apiVersion": "apps/v1",
    "kind": "StatefulSet",
    "metadata": {
        "name": "proglog",
        "namespace": "default",
        "annotations": {
            # As in the original's chart.
            "service-per-pod-label": "statefulset.kubernetes.io/pod-name",
            "service-per-pod-ports": "8400:8400",
        },
    },
    "spec": {"replicas": 3, "serviceName": "proglog"},
}


def request(attachments: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    parent = copy.deepcopy(STATEFULSET)
    parent["metadata"]["annotations"].update(changes.pop("annotations", {}))
    parent["metadata"].update(changes.pop("metadata", {}))
    parent["spec"].update(changes)
    return {
        "controller": {"kind": "DecoratorController"},
        "object": parent,
        "attachments": {"Service.v1": attachments or {}},
        "related": {},
        "finalizing": False,
    }


async def ask(path: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    async with TestClient(TestServer(application())) as client:
        async with client.post(path, data=data) as answer:
            return answer.status, await answer.json()


async def test_each_pod_gets_what_the_originals_script_gave_it() -> None:
    status, answer = await ask("/sync", request())
    assert status == 200
    # Nothing else: a hook of version 2 is parsed strictly.
    assert answer == {
        "attachments": [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "labels": {"app": "service-per-pod"}},
                "spec": {
                    "type": "LoadBalancer",
                    "selector": {"statefulset.kubernetes.io/pod-name": name},
                    "ports": [
                        {"name": "port-8400", "port": 8400, "targetPort": 8400, "protocol": "TCP"}
                    ],
                },
            }
            for name in ("proglog-0", "proglog-1", "proglog-2")
        ]
    }


async def test_ordinals_ports_and_kind() -> None:
    annotations = {
        "service-per-pod-ports": "80:8400, 8401:8401/UDP,8401:8401",
        "service-per-pod-type": "ClusterIP",
    }
    _, answer = await ask(
        "/sync", request(replicas=2, ordinals={"start": 5}, annotations=annotations)
    )
    services = answer["attachments"]
    assert [each["metadata"]["name"] for each in services] == ["proglog-5", "proglog-6"]
    assert services[0]["spec"]["type"] == "ClusterIP"
    assert [
        (port["name"], port["port"], port["targetPort"], port["protocol"])
        for port in services[0]["spec"]["ports"]
    ] == [
        ("port-80", 80, 8400, "TCP"),
        ("port-8401-udp", 8401, 8401, "UDP"),
        ("port-8401", 8401, 8401, "TCP"),
    ]


async def test_without_a_number_there_is_one_and_with_none_there_is_none() -> None:
    one = request()
    del one["object"]["spec"]["replicas"]
    _, answer = await ask("/sync", one)
    assert len(answer["attachments"]) == 1
    assert await ask("/sync", request(replicas=0)) == (200, {"attachments": []})


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "unexpected end"),
        (b"[]", "no object of JSON"),
        (b"{}", "no StatefulSet with"),
        (request(annotations={"service-per-pod-ports": "8400"}), "expected port:port"),
        (request(annotations={"service-per-pod-ports": "0:1"}), "expected port:port"),
        (request(annotations={"service-per-pod-ports": "1:1,1:2"}), "a port twice"),
        (request(annotations={"service-per-pod-type": "x"}), "expected LoadBalancer"),
        (request(replicas=limits.hook_replicas_max + 1), "expected at most"),
        (request(metadata={"name": "n" * 62}), "more than 63 characters"),
    ],
)
async def test_what_is_wrong_deletes_nothing(body: Any, why: str) -> None:
    status, answer = await ask("/sync", body)
    # Metacontroller acts on 200 only; all else is an event, and a retry.
    assert status == 422
    assert why in answer["error"]


@pytest.mark.parametrize("key", ["proglog-0", "default/proglog-0"])  # of version 1 and of 2
async def test_it_is_over_once_nothing_is_there(key: str) -> None:
    there = request(attachments={key: {"kind": "Service"}})
    assert await ask("/finalize", there) == (200, {"attachments": [], "finalized": False})
    assert await ask("/finalize", request()) == (200, {"attachments": [], "finalized": True})


async def test_the_command_serves_until_it_is_told_to_stop() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proglog.cli", "k8s-hooks", "--listen=127.0.0.1:0"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        address = line.removeprefix("listens on ").strip()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{address}/readyz") as answer:
                assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
