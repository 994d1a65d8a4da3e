"""`proglog certs`: a small certificate authority, in files."""

from __future__ import annotations

import json as jsons
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from proglog.auth.certificates import (
    AUTHORITY_DAYS,
    LEAF_DAYS,
    Facts,
    Pair,
    Use,
    issue,
    make_authority,
    read_facts,
)
from proglog.auth.principal import PEER_URI
from proglog.cli.connection import run_on_loop
from proglog.cli.parameters import Json, Words
from proglog.config import NodeConfig, SecurityConfig
from proglog.errors import ConfigurationError
from proglog.ports import Ports

_DIRECTORY = Path("certs")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SECURITY = SecurityConfig()
_DAY_SECONDS = 86400
MODEL = """[request_definition]
r = sub, obj, act

[policy_definition]
p = sub, obj, act

[policy_effect]
e = some(where (p.eft == allow))

[matchers]
m = r.sub == p.sub && r.obj == p.obj && r.act == p.act
"""
POLICY = """p, root, *, produce
p, root, *, consume
p, root, *, admin
"""

app = App(name="certs")


@app.command
def ca(*, dir: Path = _DIRECTORY, cn: str = "proglog", days: int = AUTHORITY_DAYS) -> int:  # noqa: A002  # the flag's name
    """Make a certificate authority: ca.pem and ca-key.pem.

    Parameters
    ----------
    dir
        Directory for them; made where missing.
    cn
        Its name.
    days
        How long it is valid.
    """
    _write(dir, "ca", make_authority(cn, days, _now()))
    return 0


@app.command(name="issue")
def issue_(
    use: Literal["server", "peer", "client"],
    /,
    *,
    cn: str,
    san: Words = (),
    days: int = LEAF_DAYS,
    dir: Path = _DIRECTORY,  # noqa: A002  # the flag's name
) -> int:
    """Make a certificate that ca.pem of the directory signs: USE-CN.pem and USE-CN-key.pem.

    Parameters
    ----------
    use
        What it is for. A peer's is one node's towards the others; its CN is the node's name.
    cn
        Common name: of a client the subject that policies know.
    san
        Host names and addresses that a server or peer is reached by.
    days
        How long it is valid.
    dir
        Directory of the authority, and for the certificate.
    """
    _issue(dir, Use(use), cn, san, days)
    return 0


@app.command
def renew(*files: Path, days: int = LEAF_DAYS, dir: Path = _DIRECTORY) -> int:  # noqa: A002  # the flag's name
    """Replace certificates by new ones of the same names, with new keys.

    A node takes them by itself, once both files are there.

    Parameters
    ----------
    files
        The certificates; the key of NAME.pem is NAME-key.pem.
    days
        How long the new ones are valid.
    dir
        Directory of the authority.
    """
    authority = _authority(dir)
    for path in files:
        facts = read_facts(path.read_bytes(), str(path))[0]
        name = facts.common_names[0] if facts.common_names else ""
        _replace(path, issue(authority, _use_of(facts), name, facts.names, days, _now()))
        print(f"renewed {path}")
    return 0


@app.command
def show(*files: Path, json: Json = False) -> int:
    """Print what certificates say, never a key.

    Parameters
    ----------
    files
        PEM files.
    json
        Print a JSON object a certificate.
    """
    for path in files:
        for facts in read_facts(path.read_bytes(), str(path)):
            print(jsons.dumps(_row(path, facts)) if json else _told(path, facts))
    return 0


@app.command
def check(*, security: Annotated[SecurityConfig, Parameter(name="*")] = _SECURITY) -> int:
    """Judge the files of a node as `proglog serve` would. Takes the same flags."""
    return run_on_loop(_check(security))


@app.command
def init(
    *,
    dir: Path = _DIRECTORY,  # noqa: A002  # the flag's name
    nodes: Words = ("n1", "n2", "n3"),
    san: Words = _LOOPBACK,
    days: int = LEAF_DAYS,
) -> int:
    """Make all that a first cluster needs: an authority, a certificate for the servers and for each
    node, those of the clients root and nobody, and a policy by which root may do all.

    Parameters
    ----------
    dir
        Directory for it all; made where missing.
    nodes
        Names of the nodes.
    san
        Host names and addresses that they are reached by.
    days
        How long the certificates are valid.
    """
    _write(dir, "ca", make_authority("proglog", AUTHORITY_DAYS, _now()))
    _issue(dir, Use.SERVER, "proglog", san, days)
    for node in nodes:
        _issue(dir, Use.PEER, node, san, days)
    for client in ("root", "nobody"):
        _issue(dir, Use.CLIENT, client, (), days)
    for name, text in (("model.conf", MODEL), ("policy.csv", POLICY)):
        _create(dir / name, text.encode(), 0o644)
    return 0


async def _check(security: SecurityConfig) -> int:
    from proglog.agent.security import Security

    judged = Security(NodeConfig(security=security), Ports().clock)
    try:
        await judged.load()
    finally:
        judged.close()
    if judged.is_off:
        raise ConfigurationError("there is nothing to check: give server-tls-cert-file and others")
    for name, facts in (("server", judged.contexts.server), ("peer", judged.contexts.peer)):
        print(f"{name}: {_told(Path(), facts).partition(': ')[2]}")
        if name == "peer" and not any(uri.startswith(PEER_URI) for uri in facts.uris):
            told = "names no node by a URI: whoever has its key can speak for each host it names"
            print(f"peer: {told}", file=sys.stderr)
    return 0


def _issue(directory: Path, use: Use, cn: str, san: Sequence[str], days: int) -> None:
    own = (f"{PEER_URI}{cn}",) if use is Use.PEER else ()
    made = issue(_authority(directory), use, cn, (*own, *san), days, _now())
    _write(directory, f"{use.value}-{cn}", made)


def _authority(directory: Path) -> Pair:
    certificate, key = directory / "ca.pem", directory / "ca-key.pem"
    return Pair(certificate.read_bytes(), key.read_bytes())


def _use_of(facts: Facts) -> Use:
    uses = {("server",): Use.SERVER, ("server", "client"): Use.PEER, ("client",): Use.CLIENT}
    found = uses.get(facts.uses)
    if found is None:
        raise ConfigurationError("the certificate does not say what it is for: issue a new one")
    return found


def _write(directory: Path, stem: str, pair: Pair) -> None:
    if "/" in stem or stem.startswith("."):
        raise ConfigurationError(f"{stem!r} is no file name", setting="cn")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate, key = directory / f"{stem}.pem", directory / f"{stem}-key.pem"
    if taken := next((path for path in (certificate, key) if path.exists()), None):
        raise ConfigurationError(f"{taken} exists: nothing is overwritten (see certs renew)")
    _create(key, pair.key, 0o600)
    _create(certificate, pair.certificate, 0o644)


def _create(path: Path, content: bytes, mode: int) -> None:
    """Raises OSError where the file is there, or a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(content)
    print(f"wrote {path}")


def _replace(path: Path, pair: Pair) -> None:
    """The key first: until the certificate follows, the two do not belong together, and a node
    keeps what it has."""
    for target, content, mode in (
        (path.with_name(f"{path.stem}-key.pem"), pair.key, 0o600),
        (path, pair.certificate, 0o644),
    ):
        beside = target.with_name(f".{target.name}.new")
        beside.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(beside, flags, mode), "wb") as file:
            file.write(content)
        beside.replace(target)


def _row(path: Path, facts: Facts) -> dict[str, object]:
    return {
        "file": str(path),
        "cn": list(facts.common_names),
        "names": list(facts.names),
        "use": "authority" if facts.is_authority else "/".join(facts.uses) or "any",
        "issuer": facts.issuer,
        "not_before": facts.not_before.isoformat(),
        "not_after": facts.not_after.isoformat(),
        "days_left": _days_left(facts),
        "fingerprint": facts.fingerprint,
    }


def _told(path: Path, facts: Facts) -> str:
    row = _row(path, facts)
    names = f" for {', '.join(facts.names)}" if facts.names else ""
    return (
        f"{path}: {', '.join(facts.common_names) or 'no CN'} ({row['use']}){names}, "
        f"{row['days_left']} days left, until {facts.not_after:%Y-%m-%d %H:%M} UTC"
    )


def _days_left(facts: Facts) -> int:
    return int((facts.not_after - _now()).total_seconds() // _DAY_SECONDS)


def _now() -> datetime:
    return datetime.fromtimestamp(Ports().clock.now_ms() / 1000, UTC)
