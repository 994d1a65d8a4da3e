"""The policy of reconciliation as a table: 2 to 7 voters, each number of failures."""

from __future__ import annotations

import pytest

from proglog.agent.policy import (
    DRAINING_TAG,
    Add,
    Remove,
    View,
    foreigners,
    impostors,
    in_reach,
    may_leave,
    may_remove_dead,
    misses_somebody,
    next_change,
    refuse_unreachable,
)
from proglog.errors import ChangeRefused
from proglog.membership import Member, Status
from proglog.raft.configuration import Configuration, Server
from proglog.types import ServerInfo

VOTERS_MIN = 3


def servers(count: int, first: int = 0) -> tuple[Server, ...]:
    return tuple(Server(f"uuid-{i}", f"n{i}", f"h{i}:8400") for i in range(first, first + count))


def member(number: int, status: Status = Status.ALIVE, **tags: str) -> Member:
    own = {"role": "proglog", "uuid": f"uuid-{number}", "rpc_addr": f"h{number}:8400"}
    return Member(
        name=f"n{number}",
        address="127.0.0.1",
        port=1,
        status=status,
        tags={**own, **tags},
        protocol=5,
    )


def view(configuration: Configuration, members: list[Member], **changes: object) -> View:
    fields: dict[str, object] = {
        "cluster_id": "c1",
        "configuration": configuration,
        "members": members,
        "healthy": {server.uuid for server in configuration.servers},
        "gone_seconds": {},
        "dead_server_after_seconds": 100.0,
        "left_server_after_seconds": 10.0,
        "voters_min": VOTERS_MIN,
    }
    return View(**{**fields, **changes})  # type: ignore[arg-type]  # checked by the dataclass' users


# Voters, how many of them are gone, and whether one of the gone may then be removed unasked:
# at least 3 voters must stay, and a quorum must answer.
UNASKED = [
    (2, 1, False),
    (3, 1, False),
    (3, 2, False),
    (4, 1, True),
    (4, 2, False),
    (5, 1, True),
    (5, 2, True),
    (5, 3, False),
    (6, 1, True),
    (6, 2, True),
    (6, 3, False),
    (7, 1, True),
    (7, 2, True),
    (7, 3, True),
    (7, 4, False),
]


@pytest.mark.parametrize(("voters", "gone", "allowed"), UNASKED)
def test_a_dead_voter_is_removed_only_if_the_rest_can_do_without_it(
    voters: int, gone: int, allowed: bool
) -> None:
    configuration = Configuration(servers(voters))
    healthy = {f"uuid-{i}" for i in range(gone, voters)}
    assert may_remove_dead(configuration, healthy, "uuid-0", VOTERS_MIN) is allowed
    state = view(
        configuration,
        [member(i, Status.FAILED if i < gone else Status.ALIVE) for i in range(voters)],
        healthy=healthy,
        gone_seconds={f"uuid-{i}": 1000.0 for i in range(gone)},
    )
    change = next_change(state)
    assert isinstance(change, Remove) is allowed
    if isinstance(change, Remove):
        assert change.uuid in {f"uuid-{i}" for i in range(gone)}


def test_a_voter_that_is_gone_for_less_than_the_time_stays() -> None:
    configuration = Configuration(servers(5))
    state = view(
        configuration,
        [],
        healthy={f"uuid-{i}" for i in range(1, 5)},
        gone_seconds={"uuid-0": 99.0},
    )
    assert next_change(state) is None


@pytest.mark.parametrize("voters", range(1, 8))
def test_a_leaver_goes_only_while_the_rest_has_a_quorum(voters: int) -> None:
    configuration = Configuration(servers(voters))
    for gone in range(voters):
        healthy = {f"uuid-{i}" for i in range(gone, voters)}
        rest = voters - 1
        # The healthy one that leaves takes its own vote with it.
        expected = rest > 0 and voters - gone - 1 >= rest // 2 + 1
        assert may_leave(configuration, healthy, f"uuid-{voters - 1}") is expected


def test_a_learner_may_always_leave_and_is_removed_when_gone() -> None:
    configuration = Configuration(servers(1), servers(1, first=1))
    assert may_leave(configuration, {"uuid-0"}, "uuid-1")
    state = view(configuration, [], healthy={"uuid-0"}, gone_seconds={"uuid-1": 500.0})
    assert next_change(state) == Remove("uuid-1", "it has been gone for 500 s")


def test_an_alive_unknown_member_is_a_candidate() -> None:
    newcomer = member(7)
    state = view(Configuration(servers(1)), [member(0, cluster="c1"), newcomer])
    assert next_change(state) == Add(newcomer)


@pytest.mark.parametrize(
    "stranger",
    [
        member(7, role="web"),
        member(7, cluster="c2"),
        member(7, uuid=""),
        member(7, Status.FAILED),
        member(7, Status.LEAVING),
        member(7, Status.LEFT),
    ],
)
def test_whoever_is_not_one_of_ours_and_alive_is_ignored(stranger: Member) -> None:
    assert next_change(view(Configuration(servers(1)), [stranger])) is None


def left(number: int, seconds: float = 10.0) -> dict[str, object]:
    """Of three: this one gives Raft no answer either, for so long."""
    healthy = {f"uuid-{i}" for i in range(3)} - {f"uuid-{number}"}
    return {"healthy": healthy, "gone_seconds": {f"uuid-{number}": seconds}}


def test_a_server_that_left_by_gossip_is_removed_once_it_does_not_answer() -> None:
    configuration = Configuration(servers(3))
    members = [member(0), member(1), member(2, Status.LEFT)]
    assert next_change(view(configuration, members)) is None
    assert next_change(view(configuration, members, **left(2, 9.9))) is None
    removal = next_change(view(configuration, members, **left(2)))
    assert removal == Remove("uuid-2", "it has left")


def test_a_member_with_the_uuid_of_a_server_and_another_name_removes_nothing() -> None:
    configuration = Configuration(servers(3))
    phantom = member(7, Status.LEFT, uuid="uuid-2")
    assert next_change(view(configuration, [phantom], **left(2))) is None
    assert impostors([member(2), phantom, member(8)], configuration) == [phantom]


def test_one_change_at_a_time_and_leaving_first() -> None:
    configuration = Configuration(servers(3))
    state = view(configuration, [member(2, Status.LEFT), member(7)], **left(2))
    assert isinstance(next_change(state), Remove)


def test_foreigners_are_told_apart() -> None:
    members = [member(1, cluster="c1"), member(2, cluster="c2"), member(3)]
    assert [each.name for each in foreigners(members, "c1")] == ["n2"]


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ([], [0, 1, 2]),
        ([member(0), member(1), member(2)], [0, 1, 2]),
        ([member(1, Status.FAILED)], [0, 2]),
        ([member(1, Status.LEFT), member(2, Status.FAILED)], [0]),
        ([member(1, Status.LEAVING)], [0, 1, 2]),
        # Raft knows whether the leader is there.
        ([member(0, Status.FAILED), member(1, Status.FAILED)], [0, 2]),
        # A namesake on an empty disk is another server; an agent that is none of ours says nothing.
        ([member(1, uuid="another"), member(1, Status.FAILED, role="x")], [0, 1, 2]),
        # A failed stranger that carries the uuid of a server that is there takes nothing away.
        ([member(1), member(7, Status.FAILED, uuid="uuid-1")], [0, 1, 2]),
    ],
)
def test_clients_are_sent_to_servers_that_are_there(
    members: list[Member], found: list[int]
) -> None:
    known = [
        ServerInfo(
            name=server.name,
            uuid=server.uuid,
            rpc_addr=server.address,
            is_leader=server.name == "n0",
            suffrage="voter",
        )
        for server in servers(3)
    ]
    assert [server.name for server in in_reach(known, members)] == [f"n{i}" for i in found]


def test_who_says_goodbye_to_gossip_only_is_not_removed() -> None:
    configuration = Configuration(servers(3))
    alive = [member(number) for number in range(2)]

    def change(gone: Member) -> object:
        return next_change(
            view(
                configuration,
                [*alive, gone],
                healthy={"uuid-0", "uuid-1"},
                gone_seconds={"uuid-2": 50.0},
            )
        )

    assert change(member(2, Status.LEFT)) == Remove("uuid-2", "it has left")
    assert change(member(2, Status.LEFT, **{DRAINING_TAG: "1"})) is None


def test_who_leaves_is_not_added_again() -> None:
    configuration = Configuration(servers(2))
    alive = [member(number) for number in range(2)]
    assert next_change(view(configuration, [*alive, member(2)])) == Add(member(2))
    leaving = member(2, **{DRAINING_TAG: "1"})
    assert next_change(view(configuration, [*alive, leaving])) is None


@pytest.mark.parametrize(
    ("told", "new", "alone"),
    [
        (["a:1", "b:1"], "c:1", ""),
        (["127.0.0.1:1", "localhost:2"], "[::1]:3", ""),
        (["127.0.0.1:1"], "b:1", "n0 at 127.0.0.1:1"),
        (["a:1", "b:1"], "127.0.0.1:1", "n2 at 127.0.0.1:1"),
        ([""], "127.0.0.1:1", ""),
    ],
)
def test_who_can_be_reached_on_its_own_machine_only_is_not_added(
    told: list[str], new: str, alone: str
) -> None:
    *voters, server = (
        Server(f"uuid-{number}", f"n{number}", address)
        for number, address in enumerate([*told, new])
    )
    configuration = Configuration(tuple(voters))
    if not alone:
        refuse_unreachable(configuration, server)
        return
    with pytest.raises(ChangeRefused, match=f"^{alone} can be reached on its own .*advertise-addr"):
        refuse_unreachable(configuration, server)


# --- bounds that mutants have found --------------------------------------------------------------


def test_one_that_answers_is_not_removed_unasked() -> None:
    """Of five that all answer two may fail; of four only one."""
    configuration = Configuration(servers(5))
    healthy = {server.uuid for server in configuration.servers}
    assert not may_remove_dead(configuration, healthy, "uuid-0", VOTERS_MIN)


def test_the_time_after_which_a_dead_server_goes_is_exact() -> None:
    configuration = Configuration(servers(4))
    healthy = {f"uuid-{number}" for number in range(3)}
    members = [member(number) for number in range(3)]
    for seconds, change in ((99.9, None), (100.0, Remove)):
        found = next_change(
            view(configuration, members, healthy=healthy, gone_seconds={"uuid-3": seconds})
        )
        assert (found if change is None else type(found)) is change


@pytest.mark.parametrize(
    ("configured", "seen", "looks"),
    [
        (0, [0, 1], True),  # It belongs to no cluster.
        (1, [0], True),  # It sees nobody else.
        (1, [0, 1], False),
        (3, [0, 1, 2], False),
        (3, [0, 1], True),
        (3, [0, 1, 2, 7], False),  # A stranger hides nobody.
        (3, [0, 1, 7], True),
    ],
)
def test_who_goes_on_looking_for_others(configured: int, seen: list[int], *, looks: bool) -> None:
    configuration = Configuration(servers(configured))
    members = [member(number) for number in seen]
    assert misses_somebody(configuration, members, "uuid-0") is looks


def test_one_that_failed_is_missed() -> None:
    configuration = Configuration(servers(3))
    members = [member(0), member(1), member(2, Status.FAILED)]
    assert misses_somebody(configuration, members, "uuid-0")
