"""`proglog cluster status`: where the two views of a cluster differ."""

from __future__ import annotations

from proglog._generated.log.v1 import Member, ServerStatus, Tag
from proglog.cli.cluster import differences


def server(number: int, **fields: object) -> ServerStatus:
    own = {"id": f"n{number}", "uuid": f"u{number}", "rpc_addr": f"h{number}:1"}
    return ServerStatus(**{**own, "suffrage": "voter", **fields})


def member(number: int, status: str = "alive", **tags: str) -> Member:
    own = {"role": "proglog", "uuid": f"u{number}", "rpc_addr": f"h{number}:1"}
    pairs = [Tag(name=name, value=value) for name, value in {**own, **tags}.items()]
    return Member(name=f"n{number}", address="127.0.0.1:1", status=status, tags=pairs)


def test_the_same_views_do_not_differ() -> None:
    assert differences("c1", [server(1), server(2)], [member(1), member(2)]) == []


def test_each_difference_is_told() -> None:
    servers = [server(1), server(2), server(3)]
    members = [member(1, "failed"), member(3, rpc_addr="elsewhere:2"), member(4)]
    members.append(member(5, cluster="c2"))
    assert differences("c1", servers, members) == [
        "n1 is a voter, but gossip says failed",
        "n2 is a voter, but gossip does not know it",
        "n3 is configured at h3:1, but tells elsewhere:2",
        "n4 is alive, but no server of this cluster",
        "n5 is alive, but a server of another cluster: c2",
    ]


def test_members_of_another_role_are_no_difference() -> None:
    assert differences("c1", [server(1)], [member(1), member(5, uuid="", role="web")]) == []
