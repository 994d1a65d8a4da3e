"""What Helm makes of the chart, under all its values."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from proglog.cli.app import run
from proglog.config import Address, NodeConfig
from tests.chart.rendering import CHART, Manifest, Refused, helm, one, pod_templates, render

OLDEST, NEWEST = "1.27", "1.37"
"""Versions of Kubernetes: Chart.yaml names the first."""

SWITCHES: dict[str, list[Manifest]] = {
    "tls": [
        {},
        {"tls": {"mode": "optional", "existingSecret": "mine"}},
        {"tls": {"mode": "required", "certManager": {"enabled": True, "issuerRef": {"name": "a"}}}},
    ],
    "acl": [{}, {"acl": {"model": "[request_definition]\n", "policy": "p, a, *, produce\n"}}],
    "network": [
        {},
        {
            "networkPolicy": {"enabled": True, "clients": [{"podSelector": {}}]},
            "serviceMonitor": {"enabled": True, "labels": {"a": "b"}},
            "prometheusRule": {"enabled": True, "labels": {"a": "b"}},
            "dashboard": {"enabled": True},
        },
    ],
    "size": [{}, {"replicas": 1, "bootstrapExpect": 1}, {"replicas": 5, "minReadySeconds": 0}],
    "more": [
        {},
        {
            "backup": {
                "enabled": True,
                "volume": {"persistentVolumeClaim": {"claimName": "b"}},
                "envFrom": [{"secretRef": {"name": "s"}}],
            },
            "servicePerPod": {"enabled": True},
        },
    ],
    "place": [
        {},
        {
            "persistence": {"storageClass": "fast", "accessMode": "ReadWriteOnce"},
            "drain": {"leaveOnScaleDown": False},
            "gossip": {"existingSecret": "mine"},
            "priorityClassName": "high",
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "a", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "imagePullSecrets": [{"name": "pull"}],
            "image": {"digest": f"sha256:{'0' * 64}"},
            "podAnnotations": {"a": "1"},
            "podLabels": {"b": "2"},
            "service": {"type": "LoadBalancer", "annotations": {"c": "3"}},
            "config": {"retention-bytes": "8GiB", "retention-time": "7d"},
        },
    ],
}


@functools.cache
def all_rendered() -> list[tuple[str, list[Manifest]]]:
    """Each combination of the switches, with what comes of it."""
    found = []
    for chosen in itertools.product(*(enumerate(each) for each in SWITCHES.values())):
        name = " ".join(
            f"{switch}={number}" for switch, (number, _) in zip(SWITCHES, chosen, strict=True)
        )
        values = {key: value for _, change in chosen for key, value in change.items()}
        found.append((name, render(values)))
    return found


def distinct() -> list[tuple[str, Manifest]]:
    """Each manifest once, with the first combination that makes it."""
    found: dict[str, tuple[str, Manifest]] = {}
    for name, manifests in all_rendered():
        for each in manifests:
            # The key of gossip is another one each time.
            text = json.dumps({**each, "data": None} if each["kind"] == "Secret" else each)
            found.setdefault(text, (name, each))
    return list(found.values())


def test_lint() -> None:
    helm("lint", "--strict", str(CHART))
    for values in itertools.chain.from_iterable(SWITCHES.values()):
        helm("lint", "--strict", str(CHART), values=values)


def _check_crd(manifest: Manifest) -> None:
    schema = Path(__file__).parent / "crds" / f"{manifest['kind']}.json"
    jsonschema.validate(manifest, json.loads(schema.read_text()))


def test_every_manifest_is_what_kubernetes_takes() -> None:
    """Strictly: a field that does not exist is an error."""
    for name, manifest in distinct():
        foreign = (Path(__file__).parent / "crds" / f"{manifest['kind']}.json").exists()
        for version in (OLDEST, NEWEST):
            try:
                if foreign:
                    _check_crd(manifest)
                else:
                    kubernetes_validate.validate(manifest, version, strict=True)
            except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
                pytest.fail(f"{name}: {manifest['kind']} of {version}: {error.message}")


def test_a_slip_of_the_pen_would_be_seen() -> None:
    manifest = one(render(), "StatefulSet")
    manifest["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["periodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, NEWEST, strict=True)


def test_the_oldest_version_is_the_charts_own() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == f">={OLDEST}.0-0"
    render(kube_version=OLDEST)
    with pytest.raises(Refused, match="incompatible"):
        render(kube_version="1.26")


def violations(template: Manifest) -> list[str]:
    """What the level "restricted" of pod security refuses in a pod (of what a chart may say)."""
    spec, found = template["spec"], []
    pod = spec.get("securityContext", {})
    found += [f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    allowed = {
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
        "projected", "secret",
    }  # fmt: skip
    for volume in spec.get("volumes", []):
        found += [f"volume {kind}" for kind in volume.keys() - {"name"} - allowed]
    if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("seccompProfile")
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False:
            found.append("allowPrivilegeEscalation")
        if context.get("capabilities") != {"drop": ["ALL"]}:
            found.append("capabilities")
        if context.get("privileged"):
            found.append("privileged")
        if not {**pod, **context}.get("runAsNonRoot"):
            found.append("runAsNonRoot")
        if {**pod, **context}.get("runAsUser") == 0:
            found.append("runAsUser 0")
        found += ["hostPort" for port in container.get("ports", []) if "hostPort" in port]
    return found


def test_every_pod_passes_restricted_and_has_nothing_that_it_does_not_need() -> None:
    count = 0
    for name, manifests in all_rendered():
        for template in pod_templates(manifests):
            count += 1
            assert violations(template) == [], name
            spec = template["spec"]
            assert spec["automountServiceAccountToken"] is False
            assert spec["enableServiceLinks"] is False
            for container in spec["containers"]:
                assert container["securityContext"]["readOnlyRootFilesystem"] is True
                assert "limits" in container["resources"], name
                assert ":latest" not in container["image"]
                for mount in container.get("volumeMounts", []):
                    # What is mounted so is never brought up to date.
                    assert "subPath" not in mount
    assert count > 300
    assert violations({"spec": {"containers": [{}]}})


def test_secrets_can_be_read_by_the_group_and_nobody_else() -> None:
    values = {**SWITCHES["tls"][1], **SWITCHES["more"][1]}
    for template in pod_templates(render(values)):
        spec = template["spec"]
        for volume in spec.get("volumes", []):
            if "secret" in volume and template.get("kind") != "Pod":
                assert volume["secret"]["defaultMode"] == 0o440
                assert spec["securityContext"]["fsGroup"] == 65532


def test_the_nodes_selector_selects_nodes_only() -> None:
    manifests = render(SWITCHES["more"][1])
    selector = one(manifests, "StatefulSet")["spec"]["selector"]["matchLabels"]
    matching = [
        template
        for template in pod_templates(manifests)
        if selector.items() <= template["metadata"]["labels"].items()
    ]
    assert len(matching) == 1
    for kind, name in (("Service", "-peers"), ("Service", "my-proglog")):
        assert one(manifests, kind, name)["spec"]["selector"] == selector
    assert one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selector


def test_what_can_never_be_changed_is_changed_by_no_value() -> None:
    """But for the volumes' size and class, and a name that somebody chooses."""
    first = one(render(), "StatefulSet")["spec"]
    for name, manifests in all_rendered():
        spec = one(manifests, "StatefulSet")["spec"]
        for field in ("selector", "serviceName", "podManagementPolicy"):
            assert spec[field] == first[field], name
        (claim,) = spec["volumeClaimTemplates"]
        assert claim["metadata"] == first["volumeClaimTemplates"][0]["metadata"]
        # A version in it would make every upgrade impossible.
        assert "version" not in str(claim) + str(spec["selector"])


def test_all_arithmetic_of_a_stop() -> None:
    spec = one(render(), "StatefulSet")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 60
    (container,) = spec["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == [
        "proglog", "drain", "--deadline=40s", "--leave=auto",
    ]  # fmt: skip
    with pytest.raises(Refused, match=r"expected at least .* = 61"):
        render({"drain": {"deadlineSeconds": 41}})
    never = one(render({"drain": {"leaveOnScaleDown": False}}), "StatefulSet")
    assert "--leave=never" in str(never)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"replicas": 2}, "so many nodes would never see each other"),
        ({"tls": {"mode": "required"}}, "give tls.existingSecret"),
        ({"tls": {"mode": "on"}}, "/tls/mode"),
        ({"tls": {"certManager": {"enabled": True}}}, "issuerRef.name is missing"),
        ({"acl": {"model": "x"}}, "go together"),
        ({"config": {"node-name": "x"}}, "the chart's own to say"),
        ({"config": {"Node": "x"}}, "invalid propertyName 'Node'"),
        ({"replica": 3}, "additional properties 'replica'"),
        ({"persistence": {"size": "10"}}, "/persistence/size"),
        ({"servicePerPod": {"ports": "8400"}}, "/servicePerPod/ports"),
        ({"drain": {"deadline": 1}}, "additional properties"),
    ],
)
def test_what_cannot_work_is_refused_in_words(values: Manifest, why: str) -> None:
    with pytest.raises(Refused) as refused:
        render(values)
    assert why in str(refused.value)


def test_any_release_any_namespace_and_long_names() -> None:
    for release in ("a", "proglog", "my-proglog-9", "r" * 53):
        manifests = render(release=release, namespace="n" * 63)
        name = one(manifests, "StatefulSet")["metadata"]["name"]
        # "-64" for the pod and, in its label, a revision's hash of 11 characters.
        assert len(name) + len("-64") + 11 <= 63
        for each in manifests:
            assert len(each["metadata"]["name"]) <= 63
    assert one(render(release="proglog"), "StatefulSet")["metadata"]["name"] == "proglog"
    mine = render({"fullnameOverride": "mine"})
    assert one(mine, "StatefulSet")["metadata"]["name"] == "mine"


def test_scaling_does_not_change_how_many_form_the_cluster() -> None:
    for replicas in (3, 4, 5, 0):
        config = one(render({"replicas": replicas}), "ConfigMap")["data"]["config.yaml"]
        assert yaml.safe_load(config)["bootstrap-expect"] == 3
    # Of one, the others that come later must not each begin a cluster of its own.
    for replicas, begins in ((1, True), (3, False)):
        values = {"replicas": replicas, "bootstrapExpect": 1}
        config = yaml.safe_load(one(render(values), "ConfigMap")["data"]["config.yaml"])
        assert config["bootstrap"] is begins
        assert "bootstrap-expect" not in config


def test_no_budget_that_would_hold_up_a_drain_for_ever() -> None:
    assert not [each for each in render({"replicas": 1, "bootstrapExpect": 1})
                if each["kind"] == "PodDisruptionBudget"]  # fmt: skip
    assert one(render(), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_only_what_needs_a_restart_restarts() -> None:
    def restarted_by(**values: Any) -> bool:
        changed = one(render({**tls, **values}), "StatefulSet")["spec"]["template"]
        return changed != one(render(tls), "StatefulSet")["spec"]["template"]

    tls = {"tls": {"mode": "required", "existingSecret": "a"}, **SWITCHES["acl"][1]}
    assert restarted_by(config={"retention-bytes": "1GiB"})
    assert not restarted_by(acl={"model": "[request_definition]\n", "policy": "p, b, *, admin\n"})
    assert not restarted_by(networkPolicy={"enabled": True})


def test_whoever_knows_better_can_change_anything() -> None:
    values = {
        "merge": {
            "podTemplate": {"spec": {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}]}},
            "container": {"env": [{"name": "A", "value": "{{ .Release.Name }}"}]},
            "service": {"spec": {"loadBalancerClass": "x"}},
        }
    }
    manifests = render(values)
    spec = one(manifests, "StatefulSet")["spec"]["template"]["spec"]
    assert spec["hostAliases"][0]["ip"] == "10.0.0.1"
    assert spec["containers"][0]["env"] == [{"name": "A", "value": "my"}]
    assert one(manifests, "Service", "my-proglog")["spec"]["loadBalancerClass"] == "x"
    kubernetes_validate.validate(one(manifests, "StatefulSet"), NEWEST, strict=True)


def test_a_node_takes_every_config_that_is_rendered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[NodeConfig] = []
    monkeypatch.setattr("proglog.agent.daemon.run", lambda config, _: started.append(config) or 0)
    for name, manifests in all_rendered():
        text = one(
            [each for each in manifests if "config.yaml" in each.get("data", {})], "ConfigMap"
        )["data"]["config.yaml"]
        file = tmp_path / "config.yaml"
        file.write_text(text)
        (container,) = one(manifests, "StatefulSet")["spec"]["template"]["spec"]["containers"]
        words = [
            word.replace("/etc/proglog/config.yaml", str(file)).replace(
                "$(POD_NAME)", "my-proglog-0"
            )
            for word in container["args"]
        ]
        assert run(words) == 0, name
    assert {config.node_name for config in started} == {"my-proglog-0"}
    assert {config.advertise_addr for config in started} == {
        Address("my-proglog-0.my-proglog-peers.logs.svc.cluster.local", 0)
    }
    assert {config.start_join_addrs for config in started} == {
        ("my-proglog-peers.logs.svc.cluster.local:8401",)
    }
    assert {config.security.mode for config in started} == {"off", "optional", "required"}
    assert {config.health_addr for config in started} == {Address("::", 8402)}


def test_the_alerts_and_the_dashboard_are_those_of_the_files() -> None:
    """Whose own templates are Prometheus's and Grafana's, and not Helm's."""
    manifests = render(SWITCHES["network"][1])
    rules = yaml.safe_load((CHART / "rules/proglog.yaml").read_text())
    assert one(manifests, "PrometheusRule")["spec"] == rules
    text = one(manifests, "ConfigMap", "-dashboard")["data"]["proglog.json"]
    assert json.loads(text) == json.loads((CHART / "dashboards/proglog.json").read_text())
    # The alerts say job="proglog".
    assert one(manifests, "ServiceMonitor")["spec"]["jobLabel"] == "app.kubernetes.io/name"


def test_the_original_annotations_are_on_the_set() -> None:
    annotations = one(render(SWITCHES["more"][1]), "StatefulSet")["metadata"]["annotations"]
    assert annotations["service-per-pod-label"] == "statefulset.kubernetes.io/pod-name"
    assert annotations["service-per-pod-ports"] == "8400:8400"


def test_every_value_is_described() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    readme = (CHART / "README.md").read_text()
    assert [name for name in values if f"`{name}" not in readme] == []
