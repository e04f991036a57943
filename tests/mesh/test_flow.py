"""One flow by itself: credit, half-closes, resets and ends, against a carrier that only keeps what it is told."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowLost
from proxy_vpn.mesh.credit import FLOW_WINDOW_LIMIT_BYTES, IMPLIED_CREDIT_BYTES, PEER_GROWTH_LIMIT_BYTES, Budget
from proxy_vpn.mesh.flow import Flow
from proxy_vpn.mesh.tap import untapped
from proxy_vpn.mesh.udp_flow import EARLY_DATAGRAMS, REFUSED_EVERY_S, UdpFlow
from proxy_vpn.net.turns import HURRY_S, SMALL_BYTES, TURNS
from proxy_vpn.wire.messages import datagram_frames

STREAM = 4
CHUNK_BYTES = 64 * 1024
# The process's turns are one for all tests: each reads them at times of its own.
CLOCKS = itertools.count(1000.0, 10.0)
LOST = FlowLost("the connection was lost")


class FakeCarrier:
    """A session that keeps what flows ask of it; pumps while `room`."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.peer_name = "peer-b"
        self.budget = budget or Budget(PEER_GROWTH_LIMIT_BYTES)
        self.line = untapped()
        self.rtt_s: float | None = 0.02
        self.clock_s = 100.0
        self.room = True
        self.sent = bytearray()
        self.ended_sending = False
        self.told_end: int | None = None
        self.grants: list[int] = []
        self.aborted = 0
        self.refused = 0
        self.ended: list[int] = []
        self.datagrams: list[bytes] = []
        self.ready: list[Flow] = []

    def now(self) -> float:
        return self.clock_s

    def has_room(self, size: int) -> bool:
        return self.room

    @property
    def is_clear(self) -> bool:
        return self.room

    def send_stream(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        assert stream_id == STREAM and not self.ended_sending
        self.sent += data
        self.ended_sending = end

    def end_stream(self, stream_id: int, offset: int) -> None:
        assert stream_id == STREAM and not self.ended_sending
        self.ended_sending = True
        self.told_end = offset

    def flow_ready(self, flow: Flow) -> None:
        self.ready.append(flow)

    def grant(self, stream_id: int, limit: int) -> None:
        assert stream_id == STREAM
        self.grants.append(limit)

    def abort_stream(self, stream_id: int) -> None:
        self.aborted += 1

    def refuse_stream(self, stream_id: int) -> None:
        self.refused += 1

    def flow_ended(self, stream_id: int) -> None:
        self.ended.append(stream_id)

    def send_flow_datagram(self, stream_id: int, payload: bytes) -> None:
        self.datagrams.append(payload)

    def pump(self) -> None:
        while self.ready:
            flow = self.ready.pop(0)
            while flow.ready:
                flow.pump(CHUNK_BYTES)


class Sink:
    """Keeps what it is told and asserts the order of it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.events: list[str] = []
        self.written_bytes = 0

    def data_received(self, data: bytes) -> None:
        assert not self.events
        self.data += data

    def eof_received(self) -> None:
        assert not self.events
        self.events.append("eof")

    def written(self, size: int) -> None:
        assert size > 0 and not {"lost", "finished"} & set(self.events)
        self.written_bytes += size

    def finished(self) -> None:
        assert self.events == ["eof"]
        self.events.append("finished")

    def lost(self, error: Exception) -> None:
        assert isinstance(error, FlowLost) and not {"lost", "finished"} & set(self.events)
        self.events.append("lost")


def bench(started: bool = True, budget: Budget | None = None) -> tuple[Flow, FakeCarrier, Sink]:
    carrier, sink = FakeCarrier(budget), Sink()
    flow = Flow(carrier, STREAM, Target("peer-b", 80), sent=10, received=1)
    if started:
        flow.start(sink)
    return flow, carrier, sink


# --- credit for sending ---------------------------------------------------------------------------------------


def test_a_flow_knows_its_peer_and_target() -> None:
    flow, _, _ = bench()
    assert (flow.peer_name, flow.target, flow.stream_id) == ("peer-b", Target("peer-b", 80), STREAM)


def test_without_grants_64_kib_of_the_stream_are_sent_head_included() -> None:
    flow, carrier, sink = bench()
    flow.write(bytes(100_000))
    flow.write_eof()
    carrier.pump()
    assert len(carrier.sent) == IMPLIED_CREDIT_BYTES - 10 == sink.written_bytes
    assert not carrier.ended_sending and not flow.ready


@pytest.mark.parametrize("room", [True, False])
def test_an_end_by_itself_waits_for_room_in_the_engine_and_says_where_it_is(room: bool) -> None:
    flow, carrier, _ = bench()
    flow.write(bytes(100))
    carrier.room = room
    flow.write_eof()
    assert carrier.ended_sending is room and carrier.ready == ([] if room else [flow])
    carrier.pump()
    assert carrier.ended_sending and carrier.told_end == 110


def test_each_grant_lets_so_much_more_out_and_old_ones_change_nothing() -> None:
    flow, carrier, sink = bench()
    flow.write(bytes(100_000))
    flow.write_eof()
    carrier.pump()
    for limit, sent in ((70_000, 69_990), (65_000, 69_990), (-1, 69_990), (2**62, 100_000)):
        flow.credit_received(limit)
        carrier.pump()
        assert len(carrier.sent) == sent == sink.written_bytes
    assert carrier.ended_sending and sink.events == []


@given(st.lists(st.tuples(st.integers(1, 90_000), st.integers(0, 90_000), st.booleans()), max_size=12))
@settings(max_examples=50)
def test_what_is_written_leaves_in_order_and_within_credit(steps: list[tuple[int, int, bool]]) -> None:
    flow, carrier, sink = bench()
    rest, written, limit = random.Random(1), bytearray(), IMPLIED_CREDIT_BYTES
    for size, more, room in steps:
        carrier.room = room
        written += (data := rest.randbytes(size))
        flow.write(data)
        limit += more
        flow.credit_received(limit)
        if room:
            carrier.pump()
        assert len(carrier.sent) <= limit - 10
        assert carrier.sent == written[: len(carrier.sent)]
        assert sink.written_bytes == len(carrier.sent)
    flow.write_eof()
    flow.credit_received(2**40)
    carrier.pump()
    assert carrier.sent == written and carrier.ended_sending


def test_a_full_engine_makes_a_flow_wait_for_its_turn() -> None:
    flow, carrier, sink = bench()
    carrier.room = False
    flow.write(b"abc")
    assert not carrier.sent and sink.written_bytes == 0 and carrier.ready == [flow]
    carrier.room = True
    carrier.pump()
    assert carrier.sent == b"abc"


def test_a_buffer_written_may_be_a_view_and_nothing_after_the_end_counts() -> None:
    flow, carrier, _ = bench()
    flow.write(memoryview(b"abc"))
    flow.write(b"")
    flow.write_eof()
    flow.write_eof()
    flow.write(b"late")
    carrier.pump()
    assert carrier.sent == b"abc" and carrier.ended_sending


# --- credit for receiving -------------------------------------------------------------------------------------


def test_nothing_is_granted_before_it_is_consumed() -> None:
    flow, carrier, sink = bench()
    assert flow.stream_received(bytes(IMPLIED_CREDIT_BYTES - 1), False)
    assert len(sink.data) == IMPLIED_CREDIT_BYTES - 1 and not carrier.grants
    flow.consumed(10)
    assert not carrier.grants, "not worth a message"
    flow.consumed(IMPLIED_CREDIT_BYTES - 11)
    assert carrier.grants and carrier.grants[-1] >= 2 * IMPLIED_CREDIT_BYTES


def test_one_byte_too_many_resets_the_flow() -> None:
    flow, carrier, sink = bench()
    assert not flow.stream_received(bytes(IMPLIED_CREDIT_BYTES), False)
    assert sink.events == ["lost"] and not sink.data
    assert carrier.aborted == 1 and carrier.ended == [STREAM]
    assert flow.stream_received(b"more", True), "what still comes is nobody's fault"
    assert sink.events == ["lost"]


def test_a_window_grows_while_it_is_used_up_quickly_and_shrinks_never_below_64_kib() -> None:
    flow, carrier, _ = bench()
    granted, windows = IMPLIED_CREDIT_BYTES, []
    received = 1
    for _ in range(40):
        size = granted - received
        if size:
            assert flow.stream_received(bytes(size), False)
            received += size
        carrier.clock_s += 0.02
        flow.consumed(size)
        granted = carrier.grants[-1] if carrier.grants else granted
        windows.append(granted - received)
    assert windows[-1] == max(windows) == FLOW_WINDOW_LIMIT_BYTES
    assert windows == sorted(windows)


def test_a_sender_whose_window_doubles_every_round_trip_is_hardly_held_back() -> None:
    flow, carrier, _ = bench()
    carrier.rtt_s, flight, received = 0.04, 11_000, 1
    granted = [(0.0, IMPLIED_CREDIT_BYTES)]
    while flight < FLOW_WINDOW_LIMIT_BYTES // 4:
        for part in range(8):  # spread over the round trip
            carrier.clock_s += carrier.rtt_s / 8
            size = flight * (part + 1) // 8 - flight * part // 8
            received += size
            # What arrives now left when the sender knew the grants of a round trip ago.
            known = max(limit for at, limit in granted if at <= carrier.clock_s - carrier.rtt_s + 1e-9)
            assert received - known <= flight / 4
            flow.stream_received(bytes(size), False)
            flow.consumed(size)
            granted += [(carrier.clock_s, limit) for limit in carrier.grants]
        flight *= 2


def test_a_slow_reader_keeps_the_first_window() -> None:
    flow, carrier, _ = bench()
    for _ in range(30):
        assert flow.stream_received(bytes(32 * 1024), False)
        carrier.clock_s += 5.0
        flow.consumed(32 * 1024)
    assert carrier.grants[-1] <= 30 * 32 * 1024 + 1 + IMPLIED_CREDIT_BYTES


def drive(flow: Flow, carrier: FakeCarrier, rounds: int = 60) -> int:
    """Read as quickly as it comes; the window reached."""
    received, granted = 1, IMPLIED_CREDIT_BYTES
    for _ in range(rounds):
        size = granted - received
        assert flow.stream_received(bytes(size), False)
        received += size
        carrier.clock_s += 0.01
        flow.consumed(size)
        granted = carrier.grants[-1]
    return granted - received


def test_growth_stays_within_the_budgets_and_comes_back_with_the_flow() -> None:
    process = Budget(1 << 20)
    peer = Budget(3 << 20, process)
    flows = [bench(budget=peer) for _ in range(4)]
    windows = [drive(flow, carrier) for flow, carrier, _ in flows]
    assert sum(window - IMPLIED_CREDIT_BYTES for window in windows) <= 1 << 20
    assert windows[0] > IMPLIED_CREDIT_BYTES and windows[-1] == IMPLIED_CREDIT_BYTES
    for flow, _, _ in flows:
        flow.reset()
        flow.reset()
    assert process.take(1 << 20) and not process.take(1)
    process.give_back(1 << 20)
    assert peer.take(1 << 20) and not peer.take(1)


def test_a_budget_takes_nothing_when_its_parent_refuses() -> None:
    process, peer = Budget(10), Budget(100)
    child = Budget(100, process)
    assert not child.take(11) and process.take(10)
    process.give_back(10)
    assert child.take(10) and not child.take(1)
    child.give_back(10)
    assert child.take(10) and peer.take(100) and not peer.take(1)


def test_consumed_after_the_end_and_after_the_loss_is_ignored() -> None:
    flow, carrier, _ = bench()
    flow.stream_received(bytes(60_000), True)
    flow.consumed(60_000)
    assert not carrier.grants, "no more is to come"
    flow.stream_lost(LOST)
    flow.consumed(60_000)
    lost, carrier, _ = bench()
    lost.stream_received(bytes(60_000), False)
    lost.stream_lost(LOST)
    lost.consumed(60_000)
    assert not carrier.grants


# --- ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_both_ends_make_a_clean_finish_whichever_comes_first(first: str) -> None:
    flow, carrier, sink = bench()
    if first == "theirs":
        flow.stream_received(b"last", True)
        assert sink.events == ["eof"] and sink.data == b"last"
        flow.write(b"still open")
        flow.write_eof()
        carrier.pump()
    else:
        flow.write(b"request")
        flow.write_eof()
        carrier.pump()
        assert carrier.ended_sending and not sink.events
        flow.stream_received(b"answer", False)
        flow.stream_received(b"", True)
    assert sink.events == ["eof", "finished"] and carrier.ended == [STREAM] and carrier.aborted == 0
    flow.stream_lost(LOST)
    flow.stream_reset()
    flow.sending_refused()
    flow.reset()
    assert sink.events == ["eof", "finished"] and carrier.aborted == 0


def test_a_reset_before_the_end_is_a_loss() -> None:
    flow, carrier, sink = bench()
    flow.stream_received(b"half", False)
    flow.stream_reset()
    assert sink.data == b"half" and sink.events == ["lost"] and carrier.aborted == 1


def test_an_end_that_comes_alone_is_told_and_one_with_bytes_is_not() -> None:
    flow, carrier, _ = bench()
    flow.write(b"first")
    flow.write_eof()
    carrier.pump()
    assert carrier.ended_sending and carrier.told_end == 15
    flow, carrier, _ = bench()
    carrier.room = False
    flow.write(b"first")
    flow.write_eof()
    carrier.pump()
    assert carrier.ended_sending and carrier.told_end is None


@pytest.mark.parametrize("told", ["before", "amid", "after"])
def test_an_end_that_was_told_ends_the_direction_once_all_is_there(told: str) -> None:
    flow, _, sink = bench()
    for at, when in ((1, "before"), (4, "amid"), (6, "after")):
        if told == when:
            flow.end_told(6)
        if at < 6:
            assert not flow.end_received
            assert flow.stream_received(b"abc"[: 6 - at], False)
    assert flow.end_received and sink.events[-1] == "eof"
    assert flow.stream_received(b"", True) and sink.events.count("eof") == 1


def test_a_reset_after_the_end_is_ignored() -> None:
    flow, carrier, sink = bench()
    flow.stream_received(b"whole", True)
    flow.stream_reset()
    assert sink.events == ["eof"]
    flow.write(b"more")
    flow.write_eof()
    carrier.pump()
    assert sink.events == ["eof", "finished"] and carrier.sent == b"more"


def test_a_lost_connection_is_a_loss_in_every_state_but_the_last() -> None:
    for state in ("new", "ended by us", "ended by them", "full"):
        flow, carrier, sink = bench()
        if state == "ended by us":
            flow.write_eof()
        elif state == "ended by them":
            flow.stream_received(b"x", True)
        elif state == "full":
            flow.write(bytes(200_000))
        carrier.pump()
        flow.stream_lost(LOST)
        flow.stream_lost(LOST)
        assert sink.events[-1] == "lost" and "finished" not in sink.events and carrier.ended == [STREAM]
        flow.write(b"x")
        flow.write_eof()
        flow.credit_received(2**40)
        assert not flow.ready


def test_a_stop_of_a_complete_direction_is_ignored() -> None:
    flow, carrier, sink = bench()
    flow.write_eof()
    carrier.pump()
    flow.sending_refused()
    assert not sink.events
    flow.stream_received(b"answer", True)
    assert sink.events == ["eof", "finished"]


def test_a_stop_before_our_end_is_a_loss_once_what_they_sent_is_delivered() -> None:
    flow, carrier, sink = bench()
    flow.write(bytes(100_000))
    carrier.pump()
    flow.sending_refused()
    if "lost" not in sink.events:
        flow.stream_received(b"last words", True)
    assert sink.events[-1] == "lost" and "finished" not in sink.events


def test_what_waited_when_the_peer_stopped_us_counts_as_written() -> None:
    """Whoever waits for `written` before it reads on must not wait for ever."""
    flow, carrier, sink = bench()
    flow.write(bytes(100_000))
    carrier.pump()
    flow.sending_refused()
    if "lost" not in sink.events:
        assert sink.written_bytes == 100_000
    flow.write(bytes(50_000))
    flow.write_eof()
    carrier.pump()
    flow.stream_reset()
    assert sink.events == ["lost"]


def test_our_reset_is_the_last_our_sink_hears() -> None:
    flow, carrier, sink = bench()
    flow.reset()
    flow.reset()
    flow.stream_received(b"x", True)
    flow.stream_reset()
    flow.stream_lost(LOST)
    flow.write(b"x")
    assert not sink.events and not sink.data and not carrier.sent
    assert carrier.aborted == 1 and carrier.ended == [STREAM]


def test_a_reset_after_our_end_still_delivers_what_was_written() -> None:
    flow, carrier, sink = bench()
    flow.write(bytes(100_000))
    flow.write_eof()
    carrier.pump()
    flow.reset()
    assert carrier.aborted == 0 and carrier.refused == 1
    flow.stream_received(b"too late", False)
    flow.credit_received(2**40)
    carrier.pump()
    assert len(carrier.sent) == 100_000 and carrier.ended_sending and carrier.ended == [STREAM]
    assert not sink.data and not sink.events


# --- late starts ----------------------------------------------------------------------------------------------


def test_a_late_start_delivers_what_came_before() -> None:
    flow, _, sink = bench(started=False)
    flow.stream_received(b"early ", False)
    flow.stream_received(b"bird", False)
    flow.start(sink)
    assert sink.data == b"early bird" and not sink.events
    flow.stream_received(b"!", True)
    assert sink.data == b"early bird!" and sink.events == ["eof"]


def test_a_late_start_hears_of_the_end_and_the_finish() -> None:
    flow, carrier, sink = bench(started=False)
    flow.write(b"x")
    flow.write_eof()
    carrier.pump()
    flow.stream_received(b"y", True)
    flow.start(sink)
    assert sink.data == b"y" and sink.events == ["eof", "finished"]


def test_a_late_start_hears_of_a_loss_after_the_data() -> None:
    flow, _, sink = bench(started=False)
    flow.stream_received(b"early", False)
    flow.stream_lost(LOST)
    flow.start(sink)
    assert sink.data == b"early" and sink.events == ["lost"]


def test_a_late_start_gets_a_complete_direction_even_if_the_connection_is_gone() -> None:
    flow, _, sink = bench(started=False)
    flow.stream_received(b"complete", True)
    flow.stream_lost(LOST)
    flow.start(sink)
    assert sink.data == b"complete" and sink.events == ["eof", "lost"]


def test_a_sink_that_resets_while_the_inbox_is_delivered_hears_no_more() -> None:
    flow, _, _ = bench(started=False)

    class Abrupt(Sink):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            flow.reset()

    sink = Abrupt()
    for part in (b"one", b"two", b"three"):
        flow.stream_received(part, part == b"three")
    flow.start(sink)
    assert sink.data == b"one" and not sink.events


def test_credit_is_not_consumed_by_what_waits_in_the_inbox() -> None:
    flow, carrier, _ = bench(started=False)
    assert flow.stream_received(bytes(IMPLIED_CREDIT_BYTES - 1), False)
    assert not carrier.grants
    assert not flow.stream_received(b"x", False)


# --- UDP ------------------------------------------------------------------------------------------------------


def udp_bench() -> tuple[UdpFlow, FakeCarrier, list[bytes], list[bool]]:
    carrier = FakeCarrier()
    flow = UdpFlow(carrier, STREAM, Target("peer-b", 53))
    payloads: list[bytes] = []
    closed: list[bool] = []
    flow.on_datagram = payloads.append
    flow.on_closed = lambda: closed.append(True)
    return flow, carrier, payloads, closed


def test_payloads_are_sent_and_joined_again() -> None:
    flow, carrier, payloads, _ = udp_bench()
    flow.send(b"out")
    for number, payload in enumerate((b"small", bytes(3000), b"")):
        for frame in datagram_frames(STREAM, number, payload, 1000):
            flow.frame_received(frame, 1.0)
    flow.frame_received(b"noise", 1.0)
    assert carrier.datagrams == [b"out"] and payloads == [b"small", bytes(3000), b""]


def test_what_comes_before_anybody_listens_is_kept() -> None:
    carrier = FakeCarrier()
    flow = UdpFlow(carrier, STREAM, Target("peer-b", 53))
    sent = [b"%d" % number for number in range(EARLY_DATAGRAMS + 2)]
    for number, payload in enumerate(sent):
        flow.frame_received(datagram_frames(STREAM, number, payload, 1000)[0], 1.0)
    assert not flow.closed
    flow.stream_received(b"", True)
    payloads: list[bytes] = []
    flow.on_datagram = payloads.append
    assert flow.closed and payloads == sent[2:]


@pytest.mark.parametrize("how", ["close", "end", "reset", "stop", "lost"])
def test_a_udp_flow_closes_once_however_it_ends(how: str) -> None:
    flow, carrier, payloads, closed = udp_bench()
    ends: dict[str, Callable[[], object]] = {
        "close": flow.close,
        "end": lambda: flow.stream_received(b"", True),
        "reset": flow.stream_reset,
        "stop": flow.sending_refused,
        "lost": lambda: flow.stream_lost(LOST),
    }
    for _ in range(2):
        ends[how]()
    flow.close()
    flow.send(b"x")
    flow.frame_received(datagram_frames(STREAM, 1, b"late", 1000)[0], 1.0)
    assert closed == [True] and carrier.ended == [STREAM] and not carrier.datagrams and not payloads


def test_that_nobody_listens_is_said_and_heard() -> None:
    flow, carrier, _, closed = udp_bench()
    for _ in range(3):
        carrier.clock_s += REFUSED_EVERY_S
        flow.refuse(), flow.refuse()
    assert carrier.sent == b"\x02" * 3 and not carrier.ended_sending
    heard: list[bool] = []
    flow.on_refused = lambda: heard.append(True)
    assert flow.stream_received(b"\x02", False) and flow.stream_received(b"\x02\x02", False)
    assert heard == [True] * 2 and not closed
    assert not flow.stream_received(b"\x02x", False)
    flow.close()
    flow.refuse()
    assert flow.stream_received(b"\x02", True) and len(heard) == 3 and len(carrier.sent) == 3


def test_bytes_on_a_udp_flows_stream_are_a_fault_of_the_peer() -> None:
    flow, _, _, _ = udp_bench()
    assert not flow.stream_received(b"what?", False)
    assert flow.stream_received(b"", False)


@pytest.mark.parametrize(
    ("sizes", "hurried"),
    [([1], True), ([SMALL_BYTES], False), ([CHUNK_BYTES, 1], False), ([CHUNK_BYTES, 1, 1], True)],
)
def test_small_messages_keep_turns_short_and_the_rest_of_large_ones_does_not(sizes: list[int], hurried: bool) -> None:
    flow, carrier, _ = bench()
    carrier.clock_s = next(CLOCKS)
    for size in sizes:
        flow.write(bytes(size))
    assert TURNS.are_short(carrier.now()) is hurried
    assert not TURNS.are_short(carrier.now() + HURRY_S)
    assert not TURNS.are_short(carrier.now() - HURRY_S / 2)  # a clock of another loop's


def test_datagrams_keep_turns_short() -> None:
    carrier = FakeCarrier()
    carrier.clock_s = next(CLOCKS)
    assert not TURNS.are_short(carrier.now())
    UdpFlow(carrier, STREAM, Target("peer-b", 53)).send(b"?")
    assert TURNS.are_short(carrier.now())
