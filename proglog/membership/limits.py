"""Every bound of the membership protocol, with the relations that must hold between them."""

from __future__ import annotations

KiB = 1024
MiB = 1024 * KiB

# --- what memberlist and Serf fix ----------------------------------------------------------------
packet_bytes = 1400
"""A datagram we send, encryption included: below any usual MTU (memberlist UDPBufferSize)."""
meta_bytes_max = 512
"""A node's encoded tags (memberlist MetaMaxSize)."""
compound_parts_max = 255
"""Messages of one compound packet: its count is one byte."""
query_bytes_max = 1024
"""A query, and an answer to one, encoded (Serf QuerySizeLimit, QueryResponseSizeLimit)."""
user_event_bytes_max = 512
"""Name and payload of a user event we send (Serf UserEventSizeLimit)."""

# --- what we accept ------------------------------------------------------------------------------
packet_received_bytes_max = 8 * KiB
"""A datagram we read. Stock agents keep to 1400 bytes; decompressing this much takes some ms."""
packet_nesting_max = 4
"""Compounds within compounds: stock agents send one level."""
packet_decompressed_bytes_max = 64 * KiB
stream_bytes_max = 2 * MiB
"""One message on a TCP connection, encrypted or compressed or not."""
stream_decompressed_bytes_max = 2 * MiB
stream_inline_bytes_max = 4 * KiB
"""A stream that brings more than this is decoded in a thread: decompressing it takes longer than a
callback of the loop should."""
nodes_max = 1024
"""Nodes we know, and nodes in one push/pull."""
name_bytes_max = 255
text_bytes_max = 1024
"""Error texts, query and event names, regular expressions, tag names and values."""
payload_bytes_max = 16 * KiB
"""Payload of a user event or query we receive (Serf itself refuses above 9 KiB)."""
array_items_max = 4096
map_items_max = 4096
tags_max = 128
filters_max = 16
filter_expression_bytes_max = 128
filter_steps_max = 300_000
"""Steps that matching one tag may take: some milliseconds."""
lamport_time_max = 2**62
"""A clock beyond this is a fault or an attack: nothing honest counts so far."""
lamport_ahead_max = 2**20
"""A message further ahead of our clock is dropped: else one packet, which anybody may have made up,
would move the time so far that nobody can say anything later."""
lamport_ahead_asked_max = 2**40
"""The same for the answer of a peer that we asked: how we catch up with a cluster far ahead."""
lamport_saved_max = 2**61
"""Nothing honest comes so far. A later life does not go on from there, but begins anew."""
incarnation_max = 2**32 - 1
incarnation_ahead_max = 2**20
"""News further past what is known of a node are dropped, so that nobody is accused beyond what he
can answer. What a node says of itself where we asked it is not bounded."""
asked_max = 8
"""Nodes asked at one time whether they are that far."""
incarnation_reserved = 256
"""A later life of a node begins this far past what is saved, so that what is saved is seldom."""
incarnation_saved_max = 2**31
"""From beyond it a later life does not go on, but begins anew: the others forget, too."""

# --- what we keep --------------------------------------------------------------------------------
broadcasts_max = 2048
"""Messages waiting to be gossiped, in one of the four queues."""
events_kept_max = 512
"""Recent user events (and, apart, queries), kept to recognise duplicates (Serf EventBuffer)."""
events_state_bytes_max = 512 * KiB
"""Recent user events that one push/pull carries."""
members_max = 2 * nodes_max
"""Members listed, those included that are gone: they are kept longer than nodes."""
relays_max = 256
"""Indirect probes we carry out for others at one time."""
greetings_max = 3
"""Pings that a node gets before its first answer, beside the probes;"""
greeted_at_once_max = 8
"""so many nodes in one interval of gossip,"""
greeted_max = 256
"""and so many whose answers are waited for."""
queries_running_max = 64
"""Queries of our own that still collect answers."""
query_answers_max = 2 * nodes_max
reports_max = 20
"""Nodes that are refused, and (apart) claims to a name, reported in this time:"""
reports_s = 60.0
subscription_events_max = 1024
"""Events that wait for one slow subscriber; beyond it they are counted and dropped."""
streams_max = 64
"""TCP connections open at one time, in each direction."""
join_addresses_max = 64
"""Addresses that one name may resolve to."""
rejoins_max = 8
"""Peers of a former life that are tried at one time."""
snapshot_bytes_max = 256 * KiB
snapshot_peers_max = 512
keys_max = 32
keyring_bytes_max = 4 * KiB
pause_seconds_max = 1.0
"""A longer gap between two wakes is this process standing still, not the peers being silent."""

assert packet_bytes <= packet_received_bytes_max <= packet_decompressed_bytes_max
assert meta_bytes_max < packet_bytes
assert nodes_max <= map_items_max
assert lamport_ahead_max < lamport_ahead_asked_max < lamport_saved_max < lamport_time_max
assert incarnation_reserved < incarnation_ahead_max < incarnation_saved_max < incarnation_max
# A push/pull of ours: nodes (name, meta, address, version, field names), status times, events.
assert nodes_max * (2 * name_bytes_max + meta_bytes_max + 160) + events_state_bytes_max < (
    stream_bytes_max
)
