"""The nodes that SWIM knows, the order in which they are probed, and random choices among them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.messages import Alive, NodeState, State, Versions


@dataclass(slots=True, kw_only=True)
class Node:
    """What is believed of one node. `incarnation` is the node's own counter: only it raises it."""

    name: str
    address: Address
    meta: bytes
    versions: Versions
    incarnation: int
    state: State
    changed: float
    """When `state` last changed."""
    since: float = 0.0
    """When it came to this address."""
    heard: bool = False
    """It has answered us itself: anybody may make up others, but not that."""
    greetings: int = 0
    """Pings sent to hear from it."""

    @property
    def gone(self) -> bool:
        return self.state in {State.DEAD, State.LEFT}

    @property
    def checksums(self) -> bool:
        return self.versions.protocol_max >= 5

    @property
    def nacks(self) -> bool:
        return self.versions.protocol_max >= 4

    @property
    def stream_pings(self) -> bool:
        return self.versions.protocol_max >= 3

    def alive(self) -> Alive:
        """The message that says so."""
        return Alive(
            incarnation=self.incarnation,
            node=self.name,
            host=self.address.packed,
            port=self.address.port,
            meta=self.meta,
            versions=self.versions,
        )

    def snapshot(self) -> NodeState:
        """This node in a push/pull."""
        return NodeState(
            node=self.name,
            host=self.address.packed,
            port=self.address.port,
            meta=self.meta,
            incarnation=self.incarnation,
            state=self.state,
            versions=self.versions,
        )


class NodeTable:
    """Nodes by name, at most `limits.nodes_max`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._nodes: dict[str, Node] = {}
        self._round: list[str] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    @property
    def full(self) -> bool:
        return len(self._nodes) >= limits.nodes_max

    def get(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def add(self, node: Node) -> None:
        assert node.name not in self._nodes
        assert not self.full
        self._nodes[node.name] = node
        # A random place in the current round. Appended, a newcomer would be probed last by
        # everybody, and its failure found late by all at once.
        self._round.insert(self._rng.randint(0, len(self._round)), node.name)

    def make_room(self, local: Node) -> Node | None:
        """Forgets the node that can best be spared, if one may be, and returns it: one that is
        gone, then one that never answered; of equal ones the oldest. So those who can be made up
        without end give way to each other and to newcomers, and those who answer stay."""
        spare = [node for node in self if node is not local and (node.gone or not node.heard)]
        if not spare:
            return None
        # In the order in which they came; the sort keeps it.
        victim = min(spare, key=lambda node: (not node.gone, node.heard, node.changed))
        del self._nodes[victim.name]
        return victim

    def sample(self, count: int, wanted: Callable[[Node], bool]) -> list[Node]:
        """Up to `count` different nodes, chosen among all that are wanted."""
        candidates = [node for node in self if wanted(node)]
        return self._rng.sample(candidates, min(count, len(candidates)))

    def next_to_probe(self, probed: Callable[[Node], bool]) -> tuple[Node | None, bool]:
        """The next node of the round that is to be probed; and whether a new round began.

        Each round goes through all nodes once in random order: so a failed node is probed within
        two rounds at the latest (SWIM, section 4.3), not only with high probability.
        """
        started = False
        while True:
            while self._round:
                node = self._nodes.get(self._round.pop())
                if node is not None and probed(node):
                    return node, started
            if started:
                return None, started
            started = True
            self._round = list(self._nodes)
            self._rng.shuffle(self._round)

    def forget(self, forgotten: Callable[[Node], bool]) -> None:
        for name in [node.name for node in self if forgotten(node)]:
            del self._nodes[name]
