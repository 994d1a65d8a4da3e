"""`proglog certs`: what it makes is what a node takes, and nothing is overwritten."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from proglog.cli.app import run
from proglog.config import SecurityConfig
from tests import judges


def certs(*words: object) -> int:
    return run(["certs", *map(str, words)])


def flags(folder: Path, node: str = "n1") -> list[str]:
    return [
        f"--server-tls-cert-file={folder}/server-proglog.pem",
        f"--server-tls-key-file={folder}/server-proglog-key.pem",
        f"--server-tls-ca-file={folder}/ca.pem",
        f"--peer-tls-cert-file={folder}/peer-{node}.pem",
        f"--peer-tls-key-file={folder}/peer-{node}-key.pem",
        f"--acl-model-file={folder}/model.conf",
        f"--acl-policy-file={folder}/policy.csv",
    ]


def test_what_init_makes_is_what_a_node_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "certs"
    assert certs("init", "--dir", folder, "--nodes", "n1,n2") == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == (0o600 if "-key" in path.name else 0o644), path
    capsys.readouterr()
    assert certs("check", *flags(folder)) == 0
    told = capsys.readouterr()
    assert "n1 (server/client) for localhost, 127.0.0.1, ::1, proglog:peer:n1, 89 days" in told.out
    assert not told.err
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert certs("init", "--dir", folder) == 2
    assert "ca.pem exists: nothing is overwritten" in capsys.readouterr().err
    assert certs("issue", "client", "--cn", "root", "--dir", folder) == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_show_says_all_but_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certs("ca", "--dir", tmp_path, "--cn", "ours", "--days", "10") == 0
    words = ("issue", "server", "--cn", "web", "--san", "a.example,10.0.0.1", "--days", "5")
    assert certs(*words, "--dir", tmp_path) == 0
    capsys.readouterr()
    assert certs("show", tmp_path / "ca.pem", tmp_path / "server-web.pem") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ours (authority), 9 days left" in lines[0]
    assert "web (server) for a.example, 10.0.0.1, 4 days left" in lines[1]
    assert certs("show", tmp_path / "server-web.pem", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["names"] == ["a.example", "10.0.0.1"]
    assert row["issuer"] == "CN=ours"
    assert certs("show", tmp_path / "server-web-key.pem") == 2
    told = capsys.readouterr()
    assert "holds no certificate in PEM" in told.err
    assert "PRIVATE" not in told.out + told.err


def test_renewed_is_the_same_name_with_another_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certs("init", "--dir", tmp_path / "c") == 0
    cert, key = (tmp_path / "c" / f"peer-n1{end}.pem" for end in ("", "-key"))
    old = cert.read_bytes(), key.read_bytes()
    assert certs("renew", cert, "--days", "3", "--dir", tmp_path / "c") == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert cert.read_bytes() != old[0]
    assert key.read_bytes() != old[1]
    capsys.readouterr()
    assert certs("check", *flags(tmp_path / "c")) == 0
    assert "proglog:peer:n1, 2 days" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("issue", "server", "--cn", "a"), "needs --san"),
        (("issue", "client", "--cn", "a" * 65), "expected 1 to 64 characters"),
        (("issue", "client", "--cn", "../a"), "is no file name"),
        (("issue", "client", "--cn", "a", "--days", "0"), "--days is 0"),
        (("issue", "server", "--cn", "a", "--san", "ü"), "is no name"),
    ],
)
def test_what_cannot_be_issued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], why: str
) -> None:
    assert certs("ca", "--dir", tmp_path) == 0
    assert certs(*words, "--dir", tmp_path) == 2
    assert why in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca-key.pem", "ca.pem"]


def test_check_tells_what_a_node_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certs("init", "--dir", tmp_path / "c") == 0
    (tmp_path / "c" / "policy.csv").write_text("p, root, *\n")
    assert certs("check", *flags(tmp_path / "c")) == 2
    assert "acl-policy-file line 1: it has 2 fields" in capsys.readouterr().err
    wrong = [flag.replace("peer-n1-key", "peer-n2-key") for flag in flags(tmp_path / "c")]
    assert certs("check", *wrong) == 2
    assert "do not belong together" in capsys.readouterr().err


# --- certificates of others ----------------------------------------------------------------------


def judged(
    folder: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, str, str]
) -> tuple[int, str]:
    cert, key, ca = (folder / name for name in names)
    capsys.readouterr()
    status = certs(
        "check",
        f"--server-tls-cert-file={cert}",
        f"--server-tls-key-file={key}",
        f"--server-tls-ca-file={ca}",
        "--allow-all-clients",
    )
    told = capsys.readouterr()
    return status, told.out + told.err


def test_openssl_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RSA, without keyUsage, as the shortest recipes make them."""
    openssl = judges.program("openssl")

    def do(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=tmp_path, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    do(*new, "-x509", "-subj", "/CN=ca", "-keyout", "ca-key.pem", "-out", "ca.pem")
    do(*new, "-subj", "/CN=n1", "-keyout", "k.pem", "-out", "r.csr")
    (tmp_path / "e").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-extfile", "e", "-out", "c.pem")
    do("x509", "-req", "-in", "r.csr", *signed)
    status, told = judged(tmp_path, capsys, ("c.pem", "k.pem", "ca.pem"))
    assert status == 0, told
    assert "names no node by a URI" in told


def test_cfssl_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the requests of the original, and a profile for peers, which it lacks."""
    cfssl = judges.program("cfssl")

    def do(stem: str, *words: str) -> None:
        made = subprocess.run([cfssl, *words], cwd=tmp_path, check=True, capture_output=True)
        for field, name in (("cert", f"{stem}.pem"), ("key", f"{stem}-key.pem")):
            (tmp_path / name).write_text(json.loads(made.stdout)[field])

    request = {"CN": "My CA", "key": {"algo": "rsa", "size": 2048}, "names": [{"C": "CA"}]}
    (tmp_path / "ca.json").write_text(json.dumps(request))
    usages = ["signing", "key encipherment", "server auth", "client auth"]
    profiles = {"peer": {"expiry": "8760h", "usages": usages}}
    (tmp_path / "config.json").write_text(json.dumps({"signing": {"profiles": profiles}}))
    hosts = ["localhost", "127.0.0.1", "proglog:peer:n1"]
    (tmp_path / "n1.json").write_text(json.dumps({**request, "CN": "127.0.0.1", "hosts": hosts}))
    do("ca", "gencert", "-initca", "ca.json")
    signing = ("-ca=ca.pem", "-ca-key=ca-key.pem", "-config=config.json", "-profile=peer")
    do("n1", "gencert", *signing, "n1.json")
    status, told = judged(tmp_path, capsys, ("n1.pem", "n1-key.pem", "ca.pem"))
    assert status == 0, told
    assert "proglog:peer:n1" in told
    assert "names no node" not in told


def test_an_encrypted_key_is_refused_and_nobody_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cryptography.hazmat.primitives import serialization

    assert certs("init", "--dir", tmp_path / "c") == 0
    path = tmp_path / "c" / "server-proglog-key.pem"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert certs("check", *flags(tmp_path / "c")) == 2
    assert "is encrypted" in capsys.readouterr().err


def test_without_any_certificate_there_is_nothing_to_check() -> None:
    assert certs("check") == 2
    assert SecurityConfig().mode == "off"
