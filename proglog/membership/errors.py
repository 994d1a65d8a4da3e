"""The errors of the membership package. None of them crosses the network."""

from __future__ import annotations

from proglog.errors import Action, ConfigurationError, Outcome, ProglogError


class MembershipError(ProglogError):
    """Root of this package's errors."""

    outcome = Outcome.DEFINITE
    action = Action.GIVE_UP


class MalformedMessage(MembershipError):
    """Bytes from the network that are no valid message, or exceed a bound. The only error that a
    decoder raises."""


class KeyRefused(MembershipError):
    """A keyring operation that is not possible; the keyring is unchanged."""


class TagsTooLarge(MembershipError):
    """The tags do not fit into a node's metadata. Facts: bytes, bytes_max."""


class EventTooLarge(MembershipError):
    """A user event or query exceeds what gossip carries. Facts: bytes, bytes_max."""


class JoinFailed(MembershipError):
    """No address given to `join` could be joined; the message gives a reason for each."""


class BindFailed(MembershipError, ConfigurationError):
    """The gossip address cannot be used. Facts: address."""


class NotRunning(MembershipError):
    """The operation needs a membership that has been started and has neither left nor closed."""


class ExchangeFailed(MembershipError):
    """A TCP exchange with a peer that brought no valid answer; the message says why."""
