"""Casbin's files: the original's are taken as they are, and what is wrong is said by its line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from proglog import limits
from proglog.auth.access import ACCESS
from proglog.auth.gate import Guarded, PolicyGate
from proglog.auth.policy import Policy
from proglog.auth.principal import Kind, Principal
from proglog.errors import (
    ConfigurationError,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    UnknownLog,
)
from tests.auth import original
from tests.auth.original import files
from tests.rpc.fakes import MemoryLog, MemoryLogs
from tests.waiting import meanwhile, until

CONSUME, PRODUCE = "/log.v1.Log/ConsumeStream", "/log.v1.Log/Produce"


def made(policy: bytes, model: bytes = original.MODEL) -> Policy:
    return Policy(files(model, policy))


def test_the_originals_files() -> None:
    policy = made(original.POLICY)
    assert policy.rules == 2
    for action in ("produce", "consume", "describe"):
        assert policy.decide("root", action, "*")
        assert policy.decide("root", action, "default")
    assert not policy.decide("root", "admin", "*")
    for subject in ("nobody", "ROOT", " root", "root\0", "*", "", "r.sub == p.sub || true"):
        assert not policy.decide(subject, "produce", "*")


def test_roles_and_patterns() -> None:
    policy = made(original.ROLES_POLICY, original.ROLES_MODEL)
    assert policy.decide("alice", "produce", "orders-eu")
    assert policy.decide("alice", "describe", "orders")
    assert not policy.decide("alice", "produce", "other")
    assert not policy.decide("alice", "consume", "orders")
    assert policy.decide("bob", "admin", "*")
    assert not policy.decide("bob", "consume", "orders")


def test_what_is_denied_is_not_reached_by_what_is_allowed_to_all() -> None:
    policy = made(original.DENYING_POLICY, original.DENYING_MODEL)
    assert policy.decide("eve", "consume", "open")
    assert not policy.decide("eve", "consume", "secrets")


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (b"", "holds no rule"),
        (b"# nothing\n", "holds no rule"),
        (b"p, root\n", "line 1: it has 1 fields behind p: expected 3"),
        (b"p, root, *, produce\np, root, *\n", "line 2: it has 2 fields"),
        (b"p, root, *, prodcue\n", "line 1: there is no action 'prodcue'"),
        (b"p, root, *, *\n", "line 1: there is no action"),
        (b"q, root, *, produce\n", "line 1: it begins with 'q': expected p"),
        (b"g, alice, root\n", "line 1: it begins with 'g': expected p"),
        (b"root * produce\n", "line 1: it begins with"),
        (b'p, "root", *, produce\n', "in quotation marks"),
        (b"p, , *, produce\n", "a field is empty"),
        (b"\xef\xbb\xbfp, root, *, produce\n", "byte order mark"),
        (b"p, r\xff, *, produce\n", "is not UTF-8"),
    ],
)
def test_a_policy_that_pycasbin_would_take_and_misunderstand(policy: bytes, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^acl-policy-file .*{why}"):
        made(policy)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ((b"r = sub, obj, act", b"r = sub, dom, obj, act"), "must define requests"),
        ((b"p = sub, obj, act", b"p = obj, sub, act"), "must define rules"),
        ((b"r.act == p.act", b"eval(p.act)"), "eval"),
        ((b"[matchers]", b"[nothing]"), "is no Casbin model"),
        ((b"[request_definition]", b"request"), "is no Casbin model"),
    ],
)
def test_a_model_that_is_none(change: tuple[bytes, bytes], why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^acl-model-file .*{why}"):
        made(original.POLICY, original.MODEL.replace(*change))


def test_rules_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "policy_rules_max", 2)
    with pytest.raises(ConfigurationError, match="over 2 rules"):
        made(b"p, a, *, produce\n" * 3)


# --- the gate ------------------------------------------------------------------------------------


class Versions:
    """A gate whose policy a test replaces."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.policy = made(original.POLICY)
        self.log = MemoryLog()
        self.gate = PolicyGate(lambda: self.policy, executor, peers_prove=True)

    async def open(self, route: str = CONSUME, name: str = "", who: str = "root") -> Guarded:
        principal = Principal(kind=Kind.CLIENT, subject=who)
        logs = MemoryLogs(self.log)
        handle = await self.gate.open(principal, route, ACCESS[route], name, logs)
        assert isinstance(handle, Guarded)
        return handle


@pytest.fixture
def versions() -> Iterator[Versions]:
    with ThreadPoolExecutor(1) as executor:
        yield Versions(executor)


async def test_decisions_are_made_once_a_policy(versions: Versions) -> None:
    asked = []
    decide = versions.policy.decide

    def count(*question: str) -> bool:
        asked.append(question)
        return decide(*question)

    versions.policy.decide = count  # type: ignore[method-assign]
    await asyncio.gather(*(versions.open() for _ in range(50)))
    await versions.open()
    assert asked == [("root", "consume", "default")]
    for _ in range(2):
        with pytest.raises(PermissionDenied, match="'nobody' not permitted to consume"):
            await versions.open(who="nobody")
    assert len(asked) == 2


async def test_what_is_not_there_is_no_strangers_business(versions: Versions) -> None:
    with pytest.raises(UnknownLog):
        await versions.open(name="secret")
    with pytest.raises(PermissionDenied) as there:
        await versions.open(name="default", who="nobody")
    with pytest.raises(PermissionDenied) as missing:
        await versions.open(name="secret", who="nobody")
    assert str(missing.value) == str(there.value).replace("default", "secret")
    for odd in ("a/b", "..", "-a", "x" * 129, "a\nb", "*"):
        with pytest.raises(InvalidRequest, match="is no name of a log"):
            await versions.open(name=odd)
    # Names that somebody made up are not remembered.
    assert {name for _, _, name in versions.policy._decided} == {"default", "*"}


async def test_a_stream_moves_nothing_under_an_old_policy(versions: Versions) -> None:
    await versions.log.append(b"a")
    reading, writing = await versions.open(), await versions.open(PRODUCE)
    assert (await reading.read(0, 1)).next_offset == 1
    versions.policy = await asyncio.to_thread(made, b"p, root, *, admin\n")
    for attempt in (reading.read(0, 1), reading.wait_past(0), writing.propose(None)):
        with pytest.raises(PermissionDenied):
            await attempt
    assert versions.log.next == 1


async def test_who_waits_when_the_policy_changes_is_told(versions: Versions) -> None:
    handle = await versions.open()
    async with meanwhile(handle.wait_past(0)) as waiting:
        await until(lambda: versions.log.readers == 1)
        versions.policy = await asyncio.to_thread(made, original.POLICY + b"p, b, *, consume\n")
        await versions.gate.policy_changed()
        assert not waiting.done()
        versions.policy = await asyncio.to_thread(made, b"p, root, *, produce\n")
        await versions.gate.policy_changed()
        with pytest.raises(PermissionDenied):
            await waiting
    assert not versions.gate._waiting


async def test_a_model_that_raises_denies_and_is_asked_again(versions: Versions) -> None:
    failures = [ZeroDivisionError("in a matcher")]
    decide = versions.policy.decide

    def fail_once(*question: str) -> bool:
        if failures:
            raise failures.pop()
        return decide(*question)

    versions.policy.decide = fail_once  # type: ignore[method-assign]
    with pytest.raises(PermissionDenied):
        await versions.open()
    await versions.open()


async def test_decisions_that_wait_are_bounded(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "decisions_waiting_max", 2)
    found = await asyncio.gather(
        *(versions.open(who=f"u{number}") for number in range(5)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in found) == [
        *["Overloaded"] * 3,
        *["PermissionDenied"] * 2,
    ]
    assert isinstance(found[-1], Overloaded)
