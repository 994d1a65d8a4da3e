"""The one question that `proglog drain` has for Kubernetes: does the set still want this pod?"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECONDS_MAX = 3.0
_ANSWER_BYTES_MAX = 1024 * 1024


class Doubt(Exception):
    """Whether the pod is wanted cannot be known; the message says why."""


async def is_scaled_away(environment: Mapping[str, str], account: Path = ACCOUNT) -> bool:
    """Whether the StatefulSet of this pod has been told to do with fewer. Asks the API server.

    Not where it goes down to none: that is a pause, and its volumes would come back to a cluster
    that has thrown out all but one of them. Raises Doubt.
    """
    pod, name = environment.get("POD_NAME", ""), environment.get("PROGLOG_STATEFULSET", "")
    prefix, _, ordinal = pod.rpartition("-")
    if not name:
        raise Doubt("PROGLOG_STATEFULSET is not set: this is no pod of the chart")
    if prefix != name or not ordinal.isdecimal():
        raise Doubt(f"the pod {pod!r} is none of the StatefulSet {name!r}")
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            found = await _get(environment, account, name)
    except (OSError, TimeoutError, aiohttp.ClientError, ValueError) as error:
        raise Doubt(f"the API server did not say: {str(error) or type(error).__name__}") from None
    return _is_outside(found, int(ordinal))


async def _get(environment: Mapping[str, str], account: Path, name: str) -> Any:
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    # On a thread as a whole: no file stays open where the time is up in between.
    token, namespace, authority = await asyncio.to_thread(_read, account)
    url = f"https://{host}:{port}/apis/apps/v1/namespaces/{namespace.strip()}/statefulsets/{name}"
    context = ssl.create_default_context(cadata=authority)
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token.strip()}"}) as session,
        session.get(url, ssl=context, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise Doubt(f"the API server answered {response.status}")
        return json.loads(await response.content.read(_ANSWER_BYTES_MAX))


def _read(account: Path) -> list[str]:
    return [(account / file).read_text("utf-8") for file in ("token", "namespace", "ca.crt")]


def _is_outside(found: Any, ordinal: int) -> bool:
    try:
        spec, going = found["spec"], "deletionTimestamp" in found["metadata"]
        replicas = int(spec.get("replicas", 1))
        first = int((spec.get("ordinals") or {}).get("start", 0))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Doubt("the API server's answer is no StatefulSet") from None
    return not going and replicas > 0 and not first <= ordinal < first + replicas
