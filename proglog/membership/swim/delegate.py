"""What SWIM needs of the protocol on top of it: a port."""

from __future__ import annotations

from typing import Protocol

from proglog.membership.address import Address
from proglog.membership.swim.nodes import Node


class Delegate(Protocol):
    """The protocol on top of SWIM, here Serf. Called synchronously, in the order of events."""

    def node_joined(self, node: Node) -> None: ...

    def node_updated(self, node: Node) -> None: ...

    def node_gone(self, node: Node) -> None:
        """`node.state` says if it is dead or has left."""

    def node_heard(self, node: Node) -> None:
        """It has answered us for the first time."""

    def node_dropped(self, node: Node) -> None:
        """It is forgotten, for others."""

    def node_conflict(self, node: Node, other: Address) -> None:
        """Another node at `other` claims the name of `node`."""

    def why_refused(self, meta: bytes) -> str:
        """Why a node with this metadata is none of ours; empty if nothing stands against it."""

    def node_refused(self, name: str, address: Address, why: str) -> None:
        """A node that is said to be alive is not taken as one."""

    def user_message(self, payload: bytes) -> None:
        """Raises MalformedMessage."""

    def user_broadcasts(self, space: int, overhead: int, limit: int) -> list[bytes]: ...

    def local_state(self) -> bytes: ...

    def merge_state(self, state: bytes, *, asked: bool, joining: bool) -> None:
        """`asked`: this node asked for it; `joining`: in order to join. Raises MalformedMessage."""
