"""Unary produces without a task of their own: the same answers, in one batch a turn."""

from __future__ import annotations

import asyncio

import pytest
from hyperframe.frame import HeadersFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame
from hypothesis import given
from hypothesis import strategies as st

from proglog import batch, errors, limits, wire
from proglog._generated.log import v1
from tests.rpc.raw import RawPeer, message
from tests.waiting import until


def produce(peer: RawPeer, value: bytes = b"value", **headers: str | None) -> bytes:
    request = v1.ProduceRequest(record=v1.Record(value=value))
    return peer.headers(**headers) + peer.data(message(bytes(request)), end=True)


async def answers(peer: RawPeer, count: int, seconds: float = 20) -> dict[int, tuple[bytes, dict]]:
    """Message and last headers of so many streams, by their number."""
    found: dict[int, tuple[bytes, dict]] = {}
    data: dict[int, bytes] = {}
    async with asyncio.timeout(seconds):
        while len(found) < count:
            await asyncio.sleep(0)  # what the client does here is no step of the server
            frame = await peer.receive()
            assert frame is not None, "the server closed the connection"
            if isinstance(frame, HeadersFrame):
                fields = dict(peer.decoder.decode(frame.data))
                if "END_STREAM" in frame.flags:
                    found[frame.stream_id] = data.get(frame.stream_id, b""), fields
            elif frame.stream_id and not isinstance(frame, RstStreamFrame | WindowUpdateFrame):
                data[frame.stream_id] = data.get(frame.stream_id, b"") + frame.data
    return found


def offset_of(answer: tuple[bytes, dict]) -> int:
    data, headers = answer
    assert headers["grpc-status"] == "0"
    assert int.from_bytes(data[1:5]) == len(data) - 5
    return wire.decode(v1.ProduceResponse, data[5:]).offset


async def test_produces_of_one_turn_are_one_batch_and_each_gets_its_offset(node):
    async with RawPeer(node) as peer:
        peer.send(b"".join(produce(peer, b"%d" % number) for number in range(8)))
        found = await answers(peer, 8)
    assert [offset_of(found[stream_id]) for stream_id in sorted(found)] == list(range(8))
    assert len(node.log.batches) == 1
    ((header, packed),) = node.log.batches
    assert batch.decode(header, packed[batch.HEADER_BYTES :]).values == [
        b"%d" % n for n in range(8)
    ]


async def test_a_record_that_is_refused_harms_no_other(node):
    bad = [
        v1.ProduceRequest(),
        v1.ProduceRequest(record=v1.Record(headers=[v1.Header(name="é", value=b"")])),
        v1.ProduceRequest(record=v1.Record(value=b"x"), log="unknown"),
    ]
    async with RawPeer(node) as peer:
        requests = [produce(peer)]
        for request in bad:
            requests.append(peer.headers() + peer.data(message(bytes(request)), end=True))
        requests.append(peer.headers() + peer.data(message(b"\xff"), end=True))
        requests.append(produce(peer))
        peer.send(b"".join(requests))
        found = await answers(peer, 6)
    statuses = [found[stream_id][1]["grpc-status"] for stream_id in sorted(found)]
    assert statuses == ["0", "3", "3", "5", "3", "0"]
    assert node.log.next == 2


async def test_a_fault_of_ours_is_told_as_one_and_ends_nothing_else(node, monkeypatch):
    async with RawPeer(node) as peer:
        monkeypatch.setattr("proglog.rpc.service.bare_record", None)
        peer.send(produce(peer))
        (found,) = (await answers(peer, 1)).values()
        assert found[1]["grpc-status"] == "13"
        monkeypatch.undo()
        peer.send(produce(peer))
        (found,) = (await answers(peer, 1)).values()
        assert offset_of(found) == 0


async def test_a_batch_that_is_refused_is_told_to_all_that_are_in_it(node):
    node.log.refusals = [errors.DiskFull("no space is left")]
    async with RawPeer(node) as peer:
        peer.send(produce(peer) + produce(peer))
        found = await answers(peer, 2)
        for _, headers in found.values():
            assert headers["grpc-status"] == "8"
            assert headers["grpc-message"] == "no space is left"
            assert "grpc-status-details-bin" in headers
        peer.send(produce(peer))
        (last,) = (await answers(peer, 1)).values()
        assert offset_of(last) == 0


async def test_a_deadline_ends_one_call_and_not_what_it_shares_a_batch_with(node):
    node.log.durable_at_once = False
    async with RawPeer(node) as peer:
        peer.send(produce(peer, grpc_timeout="150m") + produce(peer))
        (late,) = (await answers(peer, 1)).items()
        assert late[0] == 1
        assert late[1][1]["grpc-status"] == "4"
        node.log.sync()
        (other,) = (await answers(peer, 1)).items()
        assert (other[0], offset_of(other[1])) == (3, 1)
    await until(lambda: node.calls == 0)


@pytest.mark.parametrize("how", ["reset", "lost"])
async def test_who_is_gone_gets_no_answer_and_harms_no_other(node, how):
    node.log.durable_at_once = False
    async with RawPeer(node) as peer, RawPeer(node) as other:
        peer.send(produce(peer))
        other.send(produce(other))
        await until(lambda: node.log.next == 2)
        if how == "reset":
            peer.send(peer.reset())
        else:
            peer.writer.transport.abort()
        await until(lambda: node.calls == 1)
        node.log.sync()
        assert len(await answers(other, 1)) == 1
        if how == "reset":
            peer.send(produce(peer))
            await until(lambda: node.log.next == 3)
            node.log.sync()
            assert list(await answers(peer, 1)) == [3]
    await until(lambda: node.calls == 0)


async def test_a_peer_without_room_gets_its_answer_once_it_has_some(node):
    async with RawPeer(node) as peer:
        settings = {SettingsFrame.INITIAL_WINDOW_SIZE: 0}
        peer.send(SettingsFrame(0, settings=settings).serialize() + produce(peer) + produce(peer))
        await until(lambda: node.log.next == 2 and node.calls == 2)
        for stream_id in (3, 1):
            peer.send(WindowUpdateFrame(stream_id, window_increment=100).serialize())
        found = await answers(peer, 2)
        assert [offset_of(found[stream_id]) for stream_id in (1, 3)] == [0, 1]


async def test_what_does_not_come_in_one_frame_takes_the_usual_way(node):
    whole = message(bytes(v1.ProduceRequest(record=v1.Record(value=b"x" * 100))))
    large = message(bytes(v1.ProduceRequest(record=v1.Record(value=b"x" * limits.quick_bytes_max))))
    async with RawPeer(node) as peer:
        for pieces in ([whole[:3], whole[3:], b""], [whole, b""], [large], [whole[:50]], [b""]):
            peer.send(peer.headers())
            for piece in pieces[:-1]:
                peer.send(peer.data(piece))
                await asyncio.sleep(0)
            peer.send(peer.data(pieces[-1], end=True))
        found = await answers(peer, 5)
        statuses = [found[stream_id][1]["grpc-status"] for stream_id in sorted(found)]
        assert statuses == ["0", "0", "0", "3", "3"]


async def test_a_call_that_has_only_begun_is_refused_by_a_node_that_stops(node):
    async with RawPeer(node) as peer:
        peer.send(peer.headers())
        await until(lambda: any(c.processor._begun for c in node.server._connections))
        draining = asyncio.create_task(node.server.drain(5))
        (found,) = (await answers(peer, 1)).values()
        assert found[1]["grpc-status"] == "14"
        await draining


# --- encodings -----------------------------------------------------------------------------------

_bytes = st.binary(max_size=300)
_numbers = st.sampled_from([0, 1, 127, 128, 2**32, 2**64 - 1])
_headers = st.lists(st.tuples(st.text(st.characters(codec="ascii"), min_size=1), _bytes))


@given(
    st.lists(
        st.builds(
            v1.Record,
            value=_bytes,
            key=st.none() | _bytes,
            timestamp=_numbers,
            offset=_numbers,
            headers=_headers.map(lambda pairs: [v1.Header(name=n, value=v) for n, v in pairs]),
        )
        | st.builds(v1.Record, value=_bytes),
        max_size=3,
    ),
    st.sampled_from(["", "default"]),
    st.binary(max_size=3),
)
def test_a_bare_record_is_what_the_decoder_finds_too(records, log, more):
    for record in records:
        data = bytes(v1.ProduceRequest(record=record, log=log)) + more
        value = wire.bare_record(memoryview(data))
        if value is not None:
            assert wire.decode(v1.ProduceRequest, data) == v1.ProduceRequest(
                record=v1.Record(value=value)
            )
        elif record == v1.Record(value=record.value) and record.value and not (log or more):
            raise AssertionError("a bare record was not known")


@given(
    st.lists(st.tuples(_bytes, st.none() | _bytes, _numbers, _headers), min_size=1, max_size=5),
    _numbers,
    _numbers,
    st.sets(st.sampled_from(["keys", "timestamps", "headers"])),
)
def test_answers_are_encoded_as_the_library_does(rows, base, term, columns):
    base = min(base, 2**63)
    values, keys, stamps, headers = (list(column) for column in zip(*rows, strict=True))
    records = batch.RecordBatch(
        base,
        1_700_000_000_000,
        term,
        values,
        keys if "keys" in columns else None,
        stamps if "timestamps" in columns else None,
        [tuple(pairs) for pairs in headers] if "headers" in columns else None,
    )
    expected = b"".join(
        message(
            bytes(
                v1.ConsumeResponse(
                    record=v1.Record(
                        value=record.value,
                        offset=record.offset,
                        term=term,
                        key=record.key,
                        timestamp=record.timestamp,
                        headers=[v1.Header(name=n, value=v) for n, v in record.headers],
                    )
                )
            )
        )
        for record in records
    )
    assert wire.consume_responses(records) == expected


@given(_numbers)
def test_an_offset_is_encoded_as_the_library_does(offset):
    assert wire.produce_response(offset) == bytes(v1.ProduceResponse(offset=offset))
