"""The one place where it is decided who may do what.

Every route asks here before it does anything. A log is had from here only, and as a handle that is
asked again whenever the policy has changed: a stream that began long ago moves nothing that its
caller may not have any more.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Protocol

import structlog

from proglog import limits
from proglog.auth.access import ADMIN, EVERYTHING, Access, Scope
from proglog.auth.policy import Policy
from proglog.auth.principal import Kind, Principal
from proglog.batch import ProposedBatch
from proglog.errors import InvalidRequest, Overloaded, PermissionDenied, UnknownLog, quoted
from proglog.types import Appended, Chunk, Description, Log, Logs

_logger = structlog.get_logger("security")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DEFAULT_LOG = "default"


class Gate(Protocol):
    """What servers ask."""

    async def check(self, principal: Principal, route: str, access: Access) -> None:
        """Whether somebody may call what is about no log. Raises PermissionDenied."""

    async def open(
        self, principal: Principal, route: str, access: Access, name: str, logs: Logs
    ) -> Log:
        """A log, if somebody may do this to it. Raises PermissionDenied, UnknownLog."""


class Audit(Protocol):
    """Who is told of decisions."""

    def decided(self, principal: Principal, route: str, name: str, why: str) -> None:
        """`why` not; empty if allowed."""

    async def settle(self) -> None:
        """Until that is written, where it must be. Raises Unavailable."""


class Silent:
    """Nobody is told."""

    def decided(self, principal: Principal, route: str, name: str, why: str) -> None:
        """Nothing is."""

    async def settle(self) -> None:
        """There is nothing to write."""


class OpenGate:
    """Of a node without a policy: all may all, but for what is between nodes where these prove who
    they are."""

    def __init__(self, *, peers_prove: bool = False, audit: Audit | None = None) -> None:
        self._peers_prove = peers_prove
        self._audit = audit or Silent()

    async def check(self, principal: Principal, route: str, access: Access) -> None:
        why = why_not_kind(principal, access, peers_prove=self._peers_prove)
        self._audit.decided(principal, route, EVERYTHING, why or "")
        if why:
            raise denied(principal, access, EVERYTHING)
        if access.action == ADMIN:
            await self._audit.settle()

    async def open(
        self, principal: Principal, route: str, access: Access, name: str, logs: Logs
    ) -> Log:
        why = why_not_kind(principal, access, peers_prove=self._peers_prove)
        self._audit.decided(principal, route, name or DEFAULT_LOG, why or "")
        if why:
            raise denied(principal, access, name)
        return logs.get(name)


def why_not_kind(principal: Principal, access: Access, *, peers_prove: bool) -> str | None:
    """Before any policy: why somebody of this kind may not; "" if so, and None if it depends."""
    if access.scope is Scope.OPEN:
        return ""
    if principal.kind is Kind.PEER:
        return "" if access.for_peers else "it is not for nodes"
    if access.scope is Scope.PEER:
        # Where nodes do not prove who they are, anybody may say that they are one.
        proves_nothing = principal.kind is Kind.ANONYMOUS and not peers_prove
        return "" if proves_nothing else "it is for nodes"
    return None


def denied(principal: Principal, access: Access, name: str) -> PermissionDenied:
    """In the original's words."""
    action = access.action or "speak as a node"
    return PermissionDenied(
        f"{quoted(principal.subject)} not permitted to {action} to {quoted(name or DEFAULT_LOG)}",
        subject=principal.subject,
        action=action,
        log=name or DEFAULT_LOG,
    )


class PolicyGate:
    """Of a node with a policy."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        executor: Executor,
        *,
        peers_prove: bool,
        audit: Audit | None = None,
    ) -> None:
        """`policy` gives the one in force; what is not decided yet is, by the executor."""
        self.policy = policy
        self._executor = executor
        self._peers_prove = peers_prove
        self._audit = audit or Silent()
        self._deciding: dict[tuple[Policy, str, str, str], asyncio.Future[bool]] = {}
        self._waiting: dict[Guarded, asyncio.Timeout] = {}

    async def check(self, principal: Principal, route: str, access: Access) -> None:
        await self.decide(principal, route, access, EVERYTHING, EVERYTHING)

    async def open(
        self, principal: Principal, route: str, access: Access, name: str, logs: Logs
    ) -> Log:
        name = name or DEFAULT_LOG
        if _NAME.fullmatch(name) is None:
            raise InvalidRequest(f"{quoted(name)} is no name of a log", log=name)
        log: Log | None = None
        try:
            log = logs.get(name)
        except UnknownLog:
            # Asked as any other: whether there is such a log is no stranger's business.
            await self.decide(principal, route, access, name, EVERYTHING)
            raise
        await self.decide(principal, route, access, name, name)
        return Guarded(self, principal, route, access, name, log)

    async def decide(
        self, principal: Principal, route: str, access: Access, name: str, asked: str
    ) -> None:
        """Raises PermissionDenied for `name`, of which `asked` is the object to the policy."""
        why = why_not_kind(principal, access, peers_prove=self._peers_prove)
        if why is None:
            subject, action = principal.subject, access.action
            allowed = self.policy().known(subject, action, asked)
            if allowed is None:
                allowed = await self._find_out(subject, action, asked)
            why = "" if allowed else "the policy does not allow it"
        self._audit.decided(principal, route, name, why)
        if why:
            raise denied(principal, access, name)
        if access.action == ADMIN:
            # Told before it is done: what is told afterwards may never be.
            await self._audit.settle()

    async def _find_out(self, subject: str, action: str, name: str) -> bool:
        """All that ask the same meanwhile wait for one answer, of the policy that they found."""
        policy = self.policy()
        key = (policy, subject, action, name)
        deciding = self._deciding.get(key)
        if deciding is None:
            if len(self._deciding) >= limits.decisions_waiting_max:
                raise Overloaded("too many decisions of the policy are waited for")
            loop = asyncio.get_running_loop()
            deciding = loop.run_in_executor(self._executor, policy.decide, subject, action, name)
            self._deciding[key] = deciding
            deciding.add_done_callback(lambda _: self._deciding.pop(key))
        try:
            allowed = await asyncio.shield(deciding)
        except Exception as error:  # noqa: BLE001  # of a model's function: whatever it is, denied
            _logger.warning("the policy fails", error=str(error))
            return False
        policy.remember(subject, action, name, allowed=allowed)
        return allowed

    async def wait(self, handle: Guarded, waited_for: Awaitable[None]) -> None:
        """Waits as long as the holder may. Raises PermissionDenied."""
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._waiting[handle] = scope
                await waited_for
        except TimeoutError:
            if scope.expired():
                await handle.check()
            raise
        finally:
            self._waiting.pop(handle, None)

    async def policy_changed(self) -> None:
        """Asks anew for those that wait for something, and would not find out; they are told."""
        for number, (handle, scope) in enumerate(list(self._waiting.items())):
            try:
                await handle.check()
            except PermissionDenied:
                if handle in self._waiting:
                    scope.reschedule(0)
            if number % _SWEPT_A_TURN == 0:
                await asyncio.sleep(0)


_SWEPT_A_TURN = 100


class Guarded:
    """A log, for one caller and one action."""

    __slots__ = ("_access", "_gate", "_log", "_name", "_policy", "_principal", "_route")

    def __init__(
        self,
        gate: PolicyGate,
        principal: Principal,
        route: str,
        access: Access,
        name: str,
        log: Log,
    ) -> None:
        self._gate = gate
        self._principal = principal
        self._route = route
        self._access = access
        self._name = name
        self._log = log
        self._policy = gate.policy()

    async def check(self) -> None:
        """Raises PermissionDenied where the policy has changed its mind."""
        policy = self._gate.policy()
        if policy is not self._policy:
            await self._gate.decide(
                self._principal, self._route, self._access, self._name, self._name
            )
            self._policy = policy

    async def propose(
        self, batch: ProposedBatch, after: asyncio.Future[Appended] | None = None
    ) -> asyncio.Future[Appended]:
        assert self._access.action == "produce", "only who may produce gets a handle to append"
        await self.check()
        return await self._log.propose(batch, after)

    async def read(self, offset: int, bytes_max: int) -> Chunk:
        assert self._access.action == "consume", "only who may consume gets a handle to read"
        await self.check()
        return await self._log.read(offset, bytes_max)

    async def wait_past(self, offset: int) -> None:
        await self.check()
        await self._gate.wait(self, self._log.wait_past(offset))

    async def seek(self, timestamp: int) -> int:
        await self.check()
        return await self._log.seek(timestamp)

    async def barrier(self) -> None:
        await self.check()
        await self._log.barrier()

    def describe(self) -> Description:
        # Whatever somebody may do to a log implies this.
        return self._log.describe()
