"""A Service for each pod of a StatefulSet: the hooks of Metacontroller's DecoratorController.

The StatefulSet says by annotations what it wants: `service-per-pod-label`, the label that tells its
pods apart; `service-per-pod-ports`, as "8400:8400,8401:8401/UDP" (port of the Service, port of the
pod); `service-per-pod-type`, LoadBalancer unless given.

What an answer leaves out is deleted by Metacontroller. So only a whole answer has status 200; all
else is an error, which it reports and tries again, and which deletes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
import structlog
from aiohttp import web

from proglog import limits

_logger = structlog.get_logger("k8s-hooks")

LABEL, PORTS, TYPE = "service-per-pod-label", "service-per-pod-ports", "service-per-pod-type"
_TYPES = ("LoadBalancer", "NodePort", "ClusterIP")
_PORT = re.compile(r"(\d{1,5}):(\d{1,5})(?:/(TCP|UDP|SCTP))?")
_NAME_CHARACTERS_MAX = 63
_ATTACHED = "Service.v1"


class Refused(Exception):
    """The request, or what the StatefulSet wants, is not right; the message says how."""


def services(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that a StatefulSet is to have. Raises Refused."""
    try:
        parent = request["object"]
        name, annotations = parent["metadata"]["name"], parent["metadata"]["annotations"]
        label, ports = annotations[LABEL], _ports(annotations[PORTS])
        kind = annotations.get(TYPE, "LoadBalancer")
        spec = parent["spec"]
        replicas = int(spec.get("replicas", 1))
        first = int((spec.get("ordinals") or {}).get("start", 0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"no StatefulSet with {LABEL} and {PORTS}: {error!r}") from None
    if kind not in _TYPES:
        raise Refused(f"{TYPE} is {kind!r}: expected {', '.join(_TYPES)}")
    if not 0 <= replicas <= limits.hook_replicas_max:
        raise Refused(f"replicas is {replicas}: expected at most {limits.hook_replicas_max}")
    pods = [f"{name}-{ordinal}" for ordinal in range(first, first + replicas)]
    long = [pod for pod in pods if len(pod) > _NAME_CHARACTERS_MAX]
    if long:
        raise Refused(f"{long[0]} has more than {_NAME_CHARACTERS_MAX} characters")
    return [_service(pod, label, kind, ports) for pod in pods]


def _ports(text: str) -> list[dict[str, Any]]:
    ports = []
    for word in text.split(","):
        match = _PORT.fullmatch(word.strip())
        if match is None or not all(0 < int(match[side]) < 65536 for side in (1, 2)):
            raise Refused(f"{PORTS} is {text!r}: expected port:port of the pod, ...")
        protocol = match[3] or "TCP"
        suffix = "" if protocol == "TCP" else f"-{protocol.lower()}"
        ports.append(
            {
                "name": f"port-{match[1]}{suffix}",
                "port": int(match[1]),
                "targetPort": int(match[2]),
                "protocol": protocol,
            }
        )
    names = {port["name"] for port in ports}
    if len(names) < len(ports) or len(ports) > limits.hook_ports_max:
        raise Refused(f"{PORTS} is {text!r}: a port twice, or more than {limits.hook_ports_max}")
    return ports


def _service(pod: str, label: str, kind: str, ports: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": pod, "labels": {"app": "service-per-pod"}},
        "spec": {"type": kind, "selector": {label: pod}, "ports": ports},
    }


def sync(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a sync. Raises Refused."""
    return {"attachments": services(request)}


def finalize(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a finalize: nothing is wanted, and it is over once nothing is there."""
    attachments = request.get("attachments") or {}
    return {"attachments": [], "finalized": not attachments.get(_ATTACHED)}


def application() -> web.Application:
    """The webhooks, and probes."""
    app = web.Application(client_max_size=limits.hook_body_bytes_max)
    for path, answer in (("/sync", sync), ("/finalize", finalize)):
        app.router.add_post(path, _handler(answer))
    for path in ("/livez", "/readyz"):
        app.router.add_get(path, _well)
    return app


def _handler(answer: Any) -> Any:
    async def handle(request: web.Request) -> web.Response:
        try:
            body = orjson.loads(await request.read())
            if not isinstance(body, dict):
                raise Refused("the request is no object of JSON")
            return web.json_response(answer(body))
        except (Refused, orjson.JSONDecodeError) as error:
            _logger.warning("a hook was refused", path=request.path, why=str(error))
            return web.json_response({"error": str(error)}, status=422)

    return handle


async def _well(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")
