"""Pods of what Helm renders, as containers of the real image: what a StatefulSet's controller and a
kubelet do, by podman.

What is kinder here than Kubernetes, or otherwise:

* Names are found at once, of pods that are not ready as well (headless, published not ready). In
  Kubernetes they may be late, or be remembered as missing for half a minute.
* No endpoints controller: a Service's name gives all pods, ready or not, and the load is told the
  pods' names.
* Secrets are plain files that 65532 may read; a test of the chart asserts mode 0440 and fsGroup.
* The API server is a stub that knows one StatefulSet.
* A container that is killed is started again at once, without a back-off that grows.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.chart.rendering import Manifest, one, render
from tests.deploy.certificates import certificate_for

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 120.0
USER = 65532


def environment() -> dict[str, str]:
    lines = subprocess.run(
        [ROOT / "scripts/containers.sh", "env"], check=True, capture_output=True, text=True
    ).stdout
    return dict(line.split("=", 1) for line in lines.splitlines())


class Failed(Exception):
    """A command of podman's, with what it said."""


class Podman:
    """Runs its commands."""

    def __init__(self) -> None:
        self._environment = {**os.environ, **environment()}

    def __call__(self, *words: object, timeout: float = 120) -> str:
        done = self.run(*words, timeout=timeout)
        if done.returncode:
            raise Failed(f"podman {' '.join(map(str, words))}: {done.stderr.strip()}")
        return done.stdout.strip()

    def run(self, *words: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["podman", *map(str, words)],
            env=self._environment,
            # What watches a container leaves a file `oom` where it was started.
            cwd=tempfile.gettempdir(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"still not so after {seconds:g} s: {what}"
        time.sleep(0.1)


class ApiServer:
    """Tells pods of the one StatefulSet."""

    def __init__(self, host: str, folder: Path, answer: Callable[[], Manifest]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(answer()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        folder.mkdir()
        certificate, key = certificate_for(host)
        (folder / "ca.crt").write_bytes(certificate)
        (folder / "key").write_bytes(key)
        (folder / "token").write_text("secret")
        (folder / "namespace").write_text("logs")
        self.folder = folder
        self._server = http.server.ThreadingHTTPServer((host, 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "ca.crt", folder / "key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Cluster:
    """A release of the chart, its pods by ordinal, and their volumes."""

    def __init__(self, podman: Podman, folder: Path, values: Manifest | None = None) -> None:
        self.podman = podman
        self.tls: Path | None = None
        """What the Secret of tls.existingSecret holds."""
        self.id = f"proglog-test-{uuid.uuid4().hex[:8]}"
        self._folder = folder
        self._values = values or {}
        self.network = self.id
        podman("network", "create", "--label", self.id, self.network)
        (info,) = json.loads(podman("network", "inspect", self.network))
        # The bridge, with the address of the host on it, comes with the first container.
        podman("run", "-d", "--name", f"{self.id}-pause", "--label", self.id, "--network",
               self.network, "--entrypoint", "sleep", self.image, "100000")  # fmt: skip
        self.replicas = 0
        self.api = ApiServer(info["subnets"][0]["gateway"], folder / "api", self._statefulset)
        self.said: list[str] = []
        """What each drain answered."""
        self.render()

    @property
    def image(self) -> str:
        version = (ROOT / "charts/proglog/Chart.yaml").read_text().split('appVersion: "')[1]
        return f"localhost/proglog:{version.split(chr(34))[0]}"

    # --- what is rendered ------------------------------------------------------------------------

    def render(self, **values: Any) -> None:
        """As `helm upgrade --set` would; pods get it when they are made anew."""
        self._values = {**self._values, **values}
        self.manifests = render(self._values)
        self.set = one(self.manifests, "StatefulSet")
        self.name: str = self.set["metadata"]["name"]
        self._template = self.set["spec"]["template"]["spec"]
        (self._container,) = self._template["containers"]
        config = self._folder / f"config-{uuid.uuid4().hex[:8]}"
        config.mkdir()
        for each in self.manifests:
            if each["kind"] == "ConfigMap" and each["metadata"]["name"] == self.name:
                for name, text in each["data"].items():
                    (config / name).write_text(text)
        config.chmod(0o755)
        self._config = config
        if not hasattr(self, "_keys"):
            # By `lookup` it stays the same in a real cluster.
            secret = one(self.manifests, "Secret")["data"]["keys"]
            self._keys = base64.b64decode(secret).decode()

    def _statefulset(self) -> Manifest:
        return {"metadata": {"name": self.name}, "spec": {"replicas": self.replicas}}

    @property
    def domain(self) -> str:
        return f"{self.set['spec']['serviceName']}.logs.svc.cluster.local"

    def pod(self, ordinal: int) -> str:
        return f"{self.name}-{ordinal}"

    def container(self, ordinal: int) -> str:
        return f"{self.id}-{self.pod(ordinal)}"

    def volume(self, ordinal: int) -> str:
        return f"{self.id}-data-{ordinal}"

    def addresses(self, ordinals: Iterable[int]) -> str:
        """For clients in the network."""
        return ",".join(f"{self.pod(each)}.{self.domain}:8400" for each in ordinals)

    # --- what a kubelet does ---------------------------------------------------------------------

    def start(self, ordinal: int) -> None:
        """A pod is made: at a new address, with the volume of its name."""
        pod, limits = self.pod(ordinal), self._container["resources"]["limits"]
        words = [word.replace("$(POD_NAME)", pod) for word in self._container["args"]]
        variables = {
            "POD_NAME": pod,
            "PROGLOG_STATEFULSET": self.name,
            "PROGLOG_GOSSIP_KEYS": self._keys,
            "KUBERNETES_SERVICE_HOST": self.api._server.server_address[0],
            "KUBERNETES_SERVICE_PORT": self.api.port,
        }
        assert {each["name"] for each in self._container["env"]} <= variables.keys()
        mounts = {each["name"] for each in self._container["volumeMounts"]}
        assert ("tls" in mounts) == (self.tls is not None)
        self.podman(
            "run", "-d", "--name", self.container(ordinal), "--label", self.id,
            "--hostname", pod, "--network", self.network,
            "--network-alias", f"{pod}.{self.domain}", "--network-alias", self.domain,
            "--network-alias", f"{self.name}.logs.svc.cluster.local",
            *self._rights(), "--memory", limits["memory"].lower().rstrip("i"),
            *(word for name, value in variables.items() for word in ("-e", f"{name}={value}")),
            "-v", f"{self.volume(ordinal)}:/var/lib/proglog",
            "-v", f"{self._config}:/etc/proglog:ro",
            "-v", f"{self.api.folder}:/var/run/secrets/kubernetes.io/serviceaccount:ro",
            *(("-v", f"{self.tls}:/etc/proglog-tls:ro") if self.tls else ()),
            self.image, *words,
        )  # fmt: skip

    def _rights(self) -> list[str]:
        """As the security contexts say, or an assertion that they do."""
        context = {**self._template["securityContext"], **self._container["securityContext"]}
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not context["allowPrivilegeEscalation"]
        assert context["runAsUser"] == USER
        return ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all",
                "--security-opt=no-new-privileges", f"--user={USER}:{USER}"]  # fmt: skip

    def address(self, ordinal: int) -> str:
        networks = self.podman(
            "inspect", "--format", "{{json .NetworkSettings.Networks}}", self.container(ordinal)
        )
        return str(json.loads(networks)[self.network]["IPAddress"])

    def probe(self, ordinal: int, kind: str) -> bool:
        """What the kubelet asks, as the chart says."""
        get = self._container[f"{kind}Probe"]["httpGet"]
        port = next(
            each["containerPort"]
            for each in self._container["ports"]
            if each["name"] == get["port"]
        )
        try:
            url = f"http://{self.address(ordinal)}:{port}{get['path']}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def wait_ready(self, *ordinals: int) -> None:
        for ordinal in ordinals or range(self.replicas):
            until(lambda each=ordinal: self.probe(each, "readiness"), f"{self.pod(ordinal)} ready")

    def stop(self, ordinal: int) -> None:
        """A pod is deleted: its hook, SIGTERM, and SIGKILL when its time is over."""
        began = time.monotonic()
        grace = self._template["terminationGracePeriodSeconds"]
        hook = self._container["lifecycle"]["preStop"]["exec"]["command"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = self.podman.run("exec", self.container(ordinal), *hook, timeout=grace)
            self.said.append(f"{done.returncode} {(done.stdout + done.stderr).strip()}")
        left = max(2, int(grace - (time.monotonic() - began)))
        self.podman("stop", "-t", left, self.container(ordinal), timeout=grace + 60)
        code = self.podman("inspect", "--format", "{{.State.ExitCode}}", self.container(ordinal))
        assert code == "0", self.logs(ordinal)
        self.podman("rm", self.container(ordinal))

    def kill(self, ordinal: int) -> None:
        """Its process dies; the kubelet starts it again."""
        self.podman("kill", "--signal=KILL", self.container(ordinal))
        self.podman("wait", self.container(ordinal))
        self.podman("start", self.container(ordinal))

    def delete_by_force(self, ordinal: int) -> None:
        """No hook, no SIGTERM; a new pod comes."""
        self.podman("rm", "--force", "--time=0", self.container(ordinal))
        self.start(ordinal)

    def run_out_of_memory(self, ordinal: int) -> None:
        """The kernel ends the node, as it chose the largest of the container."""
        name = self.container(ordinal)
        process = self.podman("inspect", "--format", "{{.State.Pid}}", name)
        Path(f"/proc/{process}/oom_score_adj").write_text("1000")
        self.podman.run("exec", name, "python", "-c", "len(bytearray(4 << 30))")
        until(lambda: not Path(f"/proc/{process}").exists(), "the kernel ends the node")
        self.podman("wait", name)
        self.podman("start", name)

    def lose_volume(self, ordinal: int) -> None:
        self.podman("rm", "--force", "--time=0", self.container(ordinal))
        self.podman("volume", "rm", self.volume(ordinal))
        self.start(ordinal)

    # --- what a controller does ------------------------------------------------------------------

    def scale(self, replicas: int) -> None:
        """As the StatefulSet's controller does where pods are managed in parallel."""
        before, self.replicas = self.replicas, replicas
        if replicas > before:
            together(self.start, range(before, replicas))
            self.wait_ready()
        else:
            together(self.stop, range(replicas, before))

    def roll(self) -> None:
        """One by one, the highest ordinal first."""
        for ordinal in reversed(range(self.replicas)):
            self.stop(ordinal)
            self.start(ordinal)
            self.wait_ready(ordinal)

    def cluster_status(self, ordinal: int = 0) -> dict[str, Any]:
        command = ("exec", self.container(ordinal), "proglog", "cluster", "status", "--json")
        found: dict[str, Any] = json.loads(self.podman(*command))
        return found

    def helm_test(self) -> None:
        """The pod that `helm test` makes. Raises Failed."""
        (container,) = one(self.manifests, "Pod")["spec"]["containers"]
        interpreter, *words = container["command"]
        variables = [f"{each['name']}={each['value']}" for each in container["env"]]
        self.podman(
            "run", "--rm", "--label", self.id, "--network", self.network, *self._rights(),
            *(word for each in variables for word in ("-e", each)),
            "--entrypoint", interpreter, self.image, *words,
        )  # fmt: skip

    def voters(self) -> set[str]:
        servers = self.cluster_status()["servers"]
        return {each["id"] for each in servers if each["suffrage"] == "voter"}

    def leader(self) -> int:
        def found() -> str:
            status = self.cluster_status()["servers"]
            return next((each["id"] for each in status if each["is_leader"]), "")

        return int(until(found, "somebody leads").rpartition("-")[2])

    def logs(self, ordinal: int) -> str:
        done = self.podman.run("logs", "--tail=40", self.container(ordinal))
        return f"{self.pod(ordinal)}:\n{done.stdout}{done.stderr}"

    def close(self) -> None:
        self.api.close()
        for kind, listing, names in (
            ("container", ("ps", "-aq", "--filter", f"label={self.id}"), ("rm", "-f", "-t", "0")),
            ("volume", ("volume", "ls", "-q"), ("volume", "rm", "-f")),
            ("network", ("network", "ls", "-q", "--filter", f"label={self.id}"),
             ("network", "rm", "-f")),
        ):  # fmt: skip
            found = self.podman(*listing).split()
            if kind == "volume":
                found = [each for each in found if each.startswith(self.id)]
            if found:
                self.podman(*names, *found)


def together(act: Callable[[int], None], ordinals: Iterable[int]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, ordinals))


# --- load ----------------------------------------------------------------------------------------


class Load:
    """Producers in a container of their own, and what they were told."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._name = f"{cluster.id}-load"
        folder.mkdir()
        shutil.copy(Path(__file__).with_name("load.py"), folder / "load.py")
        folder.chmod(0o777)
        cluster.podman(
            "run", "-d", "--name", self._name, "--label", cluster.id, "--network", cluster.network,
            "-v", f"{folder}:/load", "--entrypoint", "python", cluster.image, "/load/load.py",
            f"proglog://{cluster.addresses(range(3))}", "/load",
        )  # fmt: skip
        until(lambda: (folder / "told").exists(), "the load has begun")

    def mark(self) -> float:
        """Now, on the clock of the load (the machine's)."""
        return time.time()

    def _times(self) -> list[float]:
        """When each acknowledgement came. The last line may be half written."""
        lines = (self._folder / "told").read_text().split("\n")[:-1]
        return [float(line.split()[2]) for line in lines]

    def has_told_since(self, since: float) -> bool:
        times = self._times()
        return bool(times) and max(times) > since

    def pause_since(self, since: float) -> float:
        """The longest time without an acknowledgement."""
        times = [since, *sorted(each for each in self._times() if each >= since)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def finish(self) -> dict[str, Any]:
        """Ends it and has everything read; what its checker found."""
        (self._folder / "stop").touch()
        code = self._cluster.podman("wait", self._name, timeout=300)
        logs = self._cluster.podman.run("logs", self._name)
        assert code == "0", logs.stdout + logs.stderr
        found: dict[str, Any] = json.loads((self._folder / "found").read_text())
        return found


@contextlib.contextmanager
def running(folder: Path, **values: Any) -> Iterator[Cluster]:
    podman = Podman()
    cluster = Cluster(podman, folder, values)
    try:
        yield cluster
    except BaseException:
        for ordinal in range(max(cluster.replicas, 3)):
            print(cluster.logs(ordinal))
        raise
    finally:
        cluster.close()
