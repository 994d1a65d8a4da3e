"""Helm, and what it makes of the chart."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests import judges

CHART = Path(__file__).parents[2] / "charts/proglog"
Manifest = dict[str, Any]


class Refused(Exception):
    """Helm says why."""


def helm(*words: str, values: Manifest | None = None) -> str:
    """What it prints. Raises Refused."""
    done = subprocess.run(
        [judges.program("helm"), *words, *(["--values=-"] if values is not None else [])],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def render(
    values: Manifest | None = None,
    *,
    release: str = "my",
    namespace: str = "logs",
    kube_version: str = "1.37",
    options: tuple[str, ...] = (),
) -> list[Manifest]:
    """All manifests. Raises Refused."""
    text = helm(
        "template",
        release,
        str(CHART),
        f"--namespace={namespace}",
        f"--kube-version={kube_version}",
        *options,
        values=values or {},
    )
    return [found for found in yaml.safe_load_all(text) if found]


def one(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    """The one of a kind, by the end of its name if it matters."""
    (found,) = (
        each
        for each in manifests
        if each["kind"] == kind and each["metadata"]["name"].endswith(name)
    )
    return found


def pod_templates(manifests: list[Manifest]) -> list[Manifest]:
    """The pods that they make, as objects with metadata and spec."""
    found = []
    for each in manifests:
        match each["kind"]:
            case "Pod":
                found.append(each)
            case "StatefulSet" | "Deployment":
                found.append(each["spec"]["template"])
            case "CronJob":
                found.append(each["spec"]["jobTemplate"]["spec"]["template"])
    return found
