"""Every bound of the system, in one place, with the relations that must hold between them.

Units come last in each name. What an operator may choose is in `proglog.config`, bounded by these.
"""

from __future__ import annotations

KiB = 1024
MiB = 1024 * KiB

# --- batches -------------------------------------------------------------------------------------
batch_bytes_max = 4 * MiB
"""Body of one batch: one disk write, one network message, one Raft entry."""
batch_uncompressed_bytes_max = 16 * MiB
"""Values column of one batch once decompressed."""
batch_records_max = 1_000_000
"""Records in one batch."""
record_headers_max = 64
"""Headers of one record, checked where a record enters."""
header_name_bytes_max = 1024

# --- segments ------------------------------------------------------------------------------------
segment_preamble_bytes = 16 * KiB
"""Header and marks of a segment, which its batches come after."""
segment_bytes_default = 128 * MiB
embedded_segment_bytes_default = 16 * MiB
"""Of a log in a program's own process: of those there may be many, and most are small."""
segment_bytes_max = 1024 * MiB
segment_batches_default = 50_000
"""A walk of the active segment's batches is the cost of opening after a crash: some us each."""
segment_batches_max = 250_000

stores_open_max = 32
"""Stores of sealed segments that are open for reading at a time."""
unlink_pause_seconds = 0.002
"""Between two files that are deleted, so that nobody's fdatasync waits for many."""

# --- memory and flow -----------------------------------------------------------------------------
tail_bytes_max = 32 * MiB
"""Durable batches kept in memory for readers at the tail and for followers."""
undurable_bytes_max = 32 * MiB
"""Appended but not yet durable, on one node: the writer's queue."""
inflight_bytes_max = 32 * MiB
"""Proposed but not yet answered: a produce waits here, and HTTP/2 flow control behind it."""
stream_inflight_batches_max = 64
"""Batches of one produce stream read but not yet answered."""
read_bytes_max = 256 * KiB
"""One answer of a consume stream, unless one batch is larger."""
read_batches_max = 500
"""and at most this many batches: each is checked on the loop, about 2 us."""
write_group_bytes_max = 8 * MiB
"""One write and fdatasync."""
write_parts_max = 1024
"""Buffers of one pwritev (IOV_MAX)."""
reserve_retry_seconds = 0.5
"""A full disk is asked again this often."""
mark_idle_seconds = 0.02
"""Without work for this long, the last group's mark is written alone."""
snapshot_bytes_max = 64 * MiB
"""Replicated state: cursors, producers, the configuration."""
walk_window_bytes = 4 * MiB
"""Recovery and verify read stores in pieces of this size."""
aside_bytes_max = 16 * MiB
"""What recovery cuts off is kept up to this size,"""
scan_batches = 64
"""Looking for damage, the reader's thread does other work after this many batches."""
aside_files_max = 4
"""in this many files."""
descriptors_spare = 8
"""Held in reserve: a file is opened with one of them where connections have taken all others."""

# --- replica -------------------------------------------------------------------------------------
producers_max = 10_000
"""Idempotent producers known at a time; beyond it the one that is idle longest is forgotten."""
producer_window_batches = 16
"""Batches of each that a retry may repeat; what a producer may have in flight. Every log begins
with these two, and they decide what its state becomes: they never change. Its state holds its own,
see `replica.settings`."""
control_bytes_reserved = 512
control_batches_reserved = 2
"""Room that clients' batches leave for a no-op and a command, also when the disk is full."""
segment_batches_min = control_batches_reserved + 1
"""In a smaller segment a leader could never append anything for its clients."""
answer_seconds_max = 30.0
"""A batch that is not committed by then is answered OutcomeUnknown."""
tick_seconds = 0.01
deposed_answer_seconds_max = 0.2
"""And by then where its leader leads no more, and does not hear what became of it."""
disk_stall_seconds_max = 2.0
"""A leader whose disk makes nothing durable for this long hands over."""
unfit_retry_seconds = 5.0
"""And tries again this long after, if nobody took over."""
transfer_seconds_max = 1.0
"""A leader that hands over waits this long for another to take over."""
voters_max = 5
"""Further servers stay learners."""
voters_min = 3
"""Servers that are gone are not removed below this, unless somebody asks for it."""
left_server_after_seconds = 10.0
"""A server that gossip says has left is removed once Raft, too, had no answer for this long. Gossip
can be forged, and a node that is paused or restarts cannot contradict it."""
reconcile_seconds = 1.0
health_seconds = 0.25
hearing_seconds_max = 1.0
"""A new leader has heard from all servers that answer within this time."""
ready_seconds_max = 10.0
"""A node that is a cluster of one says that it serves once it does, or after this long."""
ready_behind_batches_max = 1000
"""A node is ready for the first time once it is at most so far behind the leader."""
reconcile_retry_seconds = 5.0
identify_seconds_max = 2.0
"""A node that is to be added says who it is within this time."""
join_retry_seconds_max = 10.0
gossip_restart_seconds_min = 1.0
gossip_restart_seconds_max = 60.0
"""Pauses before gossip begins anew after a fault of it."""
forming_spare_max = 8
"""New nodes asked who they are at one time, beyond those that are to form a cluster,"""
forming_subsets_max = 2000
"""and choices of them tried to find the one that was promised."""
leave_seconds_max = 30.0
drain_transfers_max = 3
"""A node that drains tries so often to let another one lead."""
drain_told_seconds = 1.0
"""Gossip that a node drains is about by then,"""
drain_safe_seconds_max = 10.0
"""and it waits this long at most until the others can do without it."""
drain_kept_seconds = 600.0
"""A node that was drained and not stopped takes part again after this time."""
backup_part_bytes = 64 * MiB
"""A part of a backup is written once it is so large; it is in memory until then."""
restore_batches_ahead_max = 256
"""A restore is so many batches ahead of the disk at most."""
probe_connections_max = 64
"""Of who asks `health-addr`."""
hook_body_bytes_max = 1 * MiB
hook_replicas_max = 64
hook_ports_max = 16
"""What Metacontroller asks, and what is asked for by annotations."""
goodbye_seconds_max = 3.0
"""A node that was drained tells gossip that it stops, within this time."""
admin_connections_max = 8
admin_line_bytes_max = 4 * KiB
"""What is asked of a node through the socket in its directory, at a time and in length."""
replay_bytes = 1 * MiB

# --- repair --------------------------------------------------------------------------------------
scrub_pause_seconds = 60.0
"""Between two sealed segments that are read in the background, to find damage early."""
fetch_seconds_max = 2.0
"""A peer that was asked for a damaged range answers in this time, or another one is asked."""
repair_retry_seconds = 5.0
replay_retry_seconds = 0.1
"""What could not be applied for damage is read again after this time."""

# --- between servers -----------------------------------------------------------------------------
dial_seconds_max = 0.5
"""A connection is there after this time, or dialled anew: the kernel would send what was lost again
after a second, and then after three."""
dial_apart_seconds = 0.05
"""Between the addresses of one server, which are dialled side by side."""
greeting_seconds_max = 1.0
"""Whoever connected has said who it is by then."""
twin_seconds_max = 0.5
"""An earlier life of a node that is still there answers in this time; the newer one waits."""
floors_seconds = 10.0
"""What is known of the others is written down this often."""
restate_seconds = 1.0
"""A server tells the others this often what it has on its disk, while that changes."""
redial_seconds_first = 0.02
voter_redial_seconds_max = 0.25
redial_seconds_max = 2.0
"""Between two dials. The first is short, the longest is this; voters are needed sooner."""
peer_beat_seconds = 0.05
"""Connections are looked at this often."""
control_ping_seconds = 0.25
control_silence_seconds_max = 1.0
"""A control lane is asked this often for a sign of life, and given up when none came for so long by
who dialled it, for twice as long by who was dialled."""
bulk_ping_seconds = 0.5
bulk_silence_seconds_max = 1.5
"""Likewise; a bulk lane also ends with the control lane beside it."""
pings_asked_max = 8
"""Questions of one connection that an answer is still recognised of."""
peer_unacked_seconds_max = 10.0
"""The kernel gives up a connection that acknowledges nothing for this long, or takes nothing."""
peers_max = 256
"""Nodes that are only heard of, beside the servers of logs."""
names_max = 256
"""Whose last address is kept for as long as nobody tells a newer one."""
hints_of_a_peer_max = 2
"""Addresses of a server that others told, tried beside the configured one."""
peer_strangers_max = 64
"""Connections that wait for a greeting; beyond it the oldest gives way."""
peer_lanes_max = 2 * peers_max
"""Lanes that others dialled; beyond it the oldest of a node that is no server of any log."""
answers_bytes_max = 64 * KiB
"""Said to a peer that dialled us, and not read by it."""
intake_bytes_max = 32 * MiB
intake_frames_max = 256
"""Appends of one peer that wait for room here; beyond it they are refused."""

# --- time ----------------------------------------------------------------------------------------
clock_look_seconds = 0.25
"""Clocks are compared this often."""
clock_sample_seconds_max = 10.0
clock_round_trip_seconds_max = 1.0
"""An answer that took longer says too little of the moment in which it was made."""
clock_samples_max = 64
"""What another server told of its clock counts for this long; so many are kept of each server."""
clock_apart_ms_max = 1000
"""Clocks that differ by more than this are told, and whatever moves further has made a step."""
clock_step_seconds = 10.0
"""Log time follows a step once it has stood for this long."""
clock_warn_seconds = 3600.0
"""A wrong clock is told again after this long."""
retention_quiet_seconds_max = 600.0
"""Nothing is deleted for its age before clocks have agreed, without a step, for this long or a
quarter of the age, whichever is shorter;"""
retention_held_seconds_max = 3600.0
"""and no more than usual before they have for this long or the age."""
retention_window_seconds = 600.0
retention_share = 0.05
retention_times_usual = 3
"""Usual is, in each window: one segment, this share of the log, or so many times what a log of
steady growth deletes."""

# --- edge ----------------------------------------------------------------------------------------
message_bytes_max = batch_bytes_max + 64 * KiB
"""One gRPC message."""
message_unknown_bytes_max = 4 * KiB
"""Fields of one message that this version does not know, skipped for the sake of newer peers."""
message_elements_max = 256
"""Elements of all repeated fields of one message together."""
http_body_bytes_max = 4 * MiB
http_body_seconds_max = 60.0
"""A request's body arrives within this time."""
http_bodies_bytes_max = 64 * MiB
"""Bodies of all requests that are not answered yet."""
http_idle_seconds_max = 75.0
"""A connection that asks nothing, or does not end its request's head, is closed."""
http_read_bytes_max = 16 * KiB
"""One step of a reader, decoded and rendered within a millisecond, unless one batch is larger."""
http_page_records_max = 10_000
http_page_bytes_max = 4 * MiB
"""Stored bytes behind one `GET /v1/records`, up to one step more."""
http_close_seconds_max = 0.25
"""Grace for answers that are under way when the gateway closes."""
sniff_seconds_max = 5.0
"""A new connection says what it speaks within this time."""
reload_seconds = 2.0
"""How often files of certificates and policies are looked at."""
plaintext_fallback_seconds = 60.0
"""With TLS optional, a peer that said it speaks none is dialled without for so long."""
secret_file_bytes_max = 1 * MiB
"""One such file."""
policy_rules_max = 10_000
decisions_max = 65_536
"""Of one policy that are remembered; then all are forgotten."""
decisions_waiting_max = 1024
"""That a thread is to find out; beyond it calls are refused."""
audit_lines_max = 8192
"""That wait to be written; more are counted as lost."""
audit_keys_max = 4096
"""Kinds of events that are merged; what does not fit is one kind."""
audit_text_bytes_max = 128
audit_merge_seconds = 60.0
"""A refusal that comes again is told once so often, with its count."""
audit_allowed_seconds = 3600.0
"""And what was allowed."""
expired_grace_seconds = 5.0
"""A connection whose certificate has expired ends within this time."""
certificate_check_seconds = 10.0
"""How often it is asked whose certificate has expired."""
tls_farewell_seconds_max = 1.0
tls_farewell_bytes_max = 64 * KiB
"""Read and dropped of a connection whose handshake failed, so that it hears why."""
error_text_bytes_max = 1 * KiB
"""What an error says, as it leaves in an answer: in UTF-8, before anything escapes it."""
error_fact_bytes_max = 256
"""And each of its facts. Clients bound all their trailers together: grpcio at 8 KiB."""
error_name_bytes_max = 100
"""A name of somebody's choice that an error quotes."""
peer_connections_reserved = 64
"""Of them, for nodes: 4 for each pair of servers, and those that join."""
undecided_connections_max = 512
"""Connections that have not said what they speak."""
http2_idle_seconds_max = 300.0
"""A connection without calls is asked to go after this time."""
http2_unread_seconds_max = 60.0
"""One that takes nothing of what waits for it is closed."""
edge_look_seconds = 1.0
"""Connections are looked at this often."""
unary_seconds_max = 60.0
"""A unary call that names no deadline."""
message_grace_seconds = 10.0
message_bytes_per_second_min = KiB
"""A message that has begun comes so fast, after that time."""
edge_bytes_max = 256 * MiB
"""Received and not handled, or answered and not taken, of all clients together."""
outsiders_line_seconds = 60.0
"""Lines of the log about outsiders, of each kind."""
connections_max = 2000
"""Of each listener; fewer where the process may not have so many descriptors."""
descriptors_reserved = 192
"""Which are not for clients' connections: 32 stores of segments, four connections to each of the
other servers, gossip, listeners, threads, and whatever a file system call takes for a moment."""
streams_per_connection_max = 1000
"""Calls of one connection. Clients in Go open one connection and expect many."""
http2_frame_bytes_max = 256 * KiB
http2_header_list_bytes_max = 16 * KiB
"""Headers of one call, and any one frame that is not DATA."""
quick_bytes_max = 16 * KiB
"""A unary call of this size, in one frame, is handled without a task of its own,"""
together_records_max = 1024
"""and so many produces of one turn make one batch."""
http2_continuations_max = 8
"""Frames that the headers of one call come in."""
http2_small_data_bytes = 4 * KiB
"""DATA frames below this are put together as they come."""
http2_gathered_bytes_max = 64 * KiB
"""Written to one connection within one turn of the loop and not yet handed to the kernel."""
turn_units_max = 120
"""Work of all clients together in one turn of the loop: a unit is about 8 us, so 1 ms."""
turn_share_units_max = 30
"""And of one connection at a time, while others wait."""
bulk_turns_apart = 2
"""Of all streams that read in bulk, one makes a step in so many turns."""
http2_write_buffer_bytes_max = 1 * MiB
"""Written to one connection but not taken by its peer; streams wait beyond it."""
http2_idle_frames_per_second_max = 10_000
"""PING, SETTINGS and the like of one connection, and WINDOW_UPDATE beyond what it was sent; more
cuts it."""
http2_acknowledge_bytes_min = 16 * KiB
"""Read bytes are given back to the peer's window in such pieces."""
http2_stream_window_bytes = 1 * MiB
http2_connection_window_bytes = 32 * MiB
resets_per_second_max = 200
"""Streams that a client resets; more cuts the connection (CVE-2023-44487)."""

# --- client --------------------------------------------------------------------------------------
client_batch_bytes_target = 256 * KiB
"""A producer closes a batch at this size when more waits behind it."""
client_inflight_batches_max = 16
client_buffer_bytes_max = 32 * MiB
"""Records accepted by `produce` but not yet answered; beyond it `produce` waits."""
produce_timeout_seconds_default = 30.0
client_timeout_seconds_max = 365 * 24 * 3600
"""What a program may choose in its place; no loop's clock overflows by it."""
client_resolve_seconds_max = 600.0
"""How long a batch of unknown outcome is still resolved before those behind it."""
client_patience_seconds_first = 5.0
"""A node that says nothing for so long is asked again, or another one; next time for twice that."""
client_dial_seconds_max = 3.0
"""One address gets this long to accept a connection before the next is tried, at most."""
client_read_connections_max = 15
"""From one log to one node, for what reads; a further one is made where all others are full."""
client_calls_per_connection_max = 100
client_connection_window_bytes = client_calls_per_connection_max * http2_stream_window_bytes
"""Readers that read nothing take nothing from the others of their connection."""
client_room_seconds_max = 5.0
"""A call gets this long to find a connection with room for it before it is tried again."""
client_close_seconds_max = 1.0
"""A stream with nothing under way waits this long for the server's good-bye."""
client_backoff_seconds_first = 0.02
client_backoff_seconds_max = 0.1
"""A failover takes about half a second; longer pauses would only add to it."""
http_event_comment_seconds = 15.0
"""A tail of server-sent events that has nothing to say says so this often, for proxies' sake."""
client_readers_max = 64
"""Streams by which the consumers of one log read: those who read at the same place share one."""
client_prefetch_bytes_max = 1 * MiB
"""Of one stream, what nobody has taken yet, besides the piece that comes last;"""
client_window_bytes_max = 1 * MiB
"""and what somebody has taken and others may take still, before they need a stream of their own."""
client_piece_bytes = 512
"""What a piece of a stream takes beside its bytes, about."""
client_stalled_seconds_max = 1.0
"""A stream from which nobody takes for so long gives way to those who wait for one."""
client_first_answer_seconds_max = 5.0
"""A node that accepts a call to read and says nothing for so long is left for another."""
client_slice_records_max = 1000
"""A consumer hands out so many records at a time before other tasks have their turn."""
client_wake_consumers_max = 256
"""Consumers that are woken in one turn of the loop."""
client_servers_max = 64
"""Servers of the list that a node tells which are kept."""
client_servers_seconds = 10.0
"""The list is asked for again after this long, when a call begins;"""
client_servers_seconds_min = 0.2
"""or this long, while nobody is known to lead."""
client_servers_wait_seconds_max = 1.0
"""A call waits so long for the list before it goes where it would have gone without."""
client_failed_seconds_first = 1.0
"""A server that failed is not read from for so long, the next time twice as long,"""
client_failed_seconds_max = 30.0
"""and no longer than this."""
client_keepalive_seconds = 2.0
"""A connection with calls is pinged this often, and given up when no answer comes as long."""
client_quiet_seconds = 0.4
client_pong_seconds = 0.1
"""Sooner than that: a connection with calls that brings nothing for so long is asked for a sign of
life, and without one in this time other nodes are asked who leads, again and again."""
client_word_seconds_max = 0.25
"""They get this long to say so."""
client_dial_seconds_first = 1.0
"""One address gets this long to accept a connection where there are others; twice that once it was
too short, up to:"""

# --- shutdown ------------------------------------------------------------------------------------
drain_seconds_default = 10.0

assert http2_connection_window_bytes * 8 <= edge_bytes_max
assert peer_connections_reserved * 4 < connections_max
assert turn_share_units_max * 4 <= turn_units_max
assert batch_bytes_max < message_bytes_max
assert batch_bytes_max < undurable_bytes_max
assert batch_bytes_max < inflight_bytes_max
assert client_batch_bytes_target <= batch_bytes_max
assert http2_acknowledge_bytes_min * 4 <= http2_stream_window_bytes
assert http2_stream_window_bytes * 16 <= http2_connection_window_bytes
assert client_inflight_batches_max <= producer_window_batches
assert client_dial_seconds_max < client_room_seconds_max
assert client_readers_max < client_read_connections_max * client_calls_per_connection_max
assert http2_connection_window_bytes < client_connection_window_bytes < 2**31
assert segment_batches_default <= segment_batches_max
# A sign of life that was lost is asked for again, and again, before anybody is given up.
assert 3 * (control_ping_seconds + peer_beat_seconds) < control_silence_seconds_max
assert 2 * (bulk_ping_seconds + peer_beat_seconds) < bulk_silence_seconds_max
assert twin_seconds_max < greeting_seconds_max
# After silence of any length: given up, dialled, greeted within 2 s, and a leader elected.
assert dial_seconds_max + voter_redial_seconds_max < control_silence_seconds_max
assert segment_bytes_default > batch_bytes_max
