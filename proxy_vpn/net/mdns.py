"""DNS-SD on zeroconf's engine: a Responder publishes services of one type and says which others it hears.

Of zeroconf only its sockets, its answers and its parser are used. Its browser is not: it remembers every name it ever
heard. Its cache holds 10,000 records of any size, so whatever a datagram brought is taken out again at once, apart from
our own records (which bound how often a question is answered) and one SRV record each of up to 256 services that were
welcome (which make it notice a goodbye). A kernel filter keeps out everything but this type's multicasts, and when
announcements come faster than any LAN has reason for, everything for five seconds.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from zeroconf import (  # type: ignore[attr-defined]  # the records are public, but not in its __all__
    DNSAddress,
    DNSOutgoing,
    DNSQuestion,
    DNSRecord,
    DNSService,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
)
from zeroconf.asyncio import AsyncZeroconf

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.net.lan_services import MAX_ADDRESSES, Service
from proxy_vpn.net.mdns_filter import GROUP4, GROUP6, listen_only_to, listen_to_nothing

SERVICE_TYPE = "_pvpn._udp.local."
TTL_S = 120
GOODBYES_AWAITED = 256
DATAGRAMS_PER_S = 400
DEAF_S = 5.0
RECORDS_PER_DATAGRAM = 128
_QUERY, _TYPE_PTR, _CLASS_IN = 0, 12, 1
_NO_TEXT = b"\0"  # RFC 6763, section 6.1: a TXT record is never empty
_LABEL = re.compile(r"[a-z0-9-]{1,63}\." + re.escape(SERVICE_TYPE))
_log = logging.getLogger(__name__)

# It warns of every network that is down, and quotes remote names as they came.
logging.getLogger("zeroconf").setLevel(logging.CRITICAL)


class Responder:
    """One set of mDNS sockets.

    on_service(label, addresses) is called for every announcement heard, our own too, with at most 8 addresses;
    it says whether that service is welcome. Then on_goodbye(label) follows when it is withdrawn or has expired.
    """

    def __init__(self, engine: AsyncZeroconf, listener: _Listener) -> None:
        self._engine = engine
        self._listener = listener
        self._published: dict[Service, ServiceInfo] = {}

    @classmethod
    async def open(
        cls,
        interfaces: Sequence[str | int],
        on_service: Callable[[str, tuple[Address, ...]], bool],
        on_goodbye: Callable[[str], None],
    ) -> Responder:
        """Join the mDNS group on interfaces given by an IPv4 address or, for IPv6, by index; raises OSError.

        What zeroconf itself raises (RuntimeError and its own Error) passes through.
        """
        usable = [interface for interface in interfaces if _joins(interface)]
        if not usable:
            raise OSError("no interface takes multicast")
        engine = AsyncZeroconf(interfaces=usable)
        started = asyncio.ensure_future(engine.zeroconf.async_wait_for_start())
        try:
            await asyncio.shield(started)  # a start that is cancelled half way can't be closed
            if not engine.zeroconf.engine.senders:
                raise OSError("no interface sends multicast")
            if not all(listen_only_to(reader.sock, SERVICE_TYPE) for reader in engine.zeroconf.engine.readers):
                raise OSError("the system filters no sockets, and strangers must not be answered")
        except BaseException:
            await asyncio.gather(started, return_exceptions=True)
            await engine.async_close()
            raise
        listener = _Listener(engine.zeroconf, on_service, on_goodbye)
        engine.zeroconf.async_add_listener(listener, None)
        return cls(engine, listener)

    @property
    def published(self) -> set[Service]:
        """What is answered for now."""
        return set(self._published)

    async def publish(self, service: Service) -> None:
        """Announce it (three times in half a second) and answer for it; its label must be random enough to be ours."""
        info = ServiceInfo(
            SERVICE_TYPE,
            f"{service.label}.{SERVICE_TYPE}",
            port=service.addresses[0].port,
            properties=_NO_TEXT,
            server=f"{service.server}.local.",
            host_ttl=TTL_S,
            other_ttl=TTL_S,
            addresses=[address.packed()[:-2] for address in service.addresses],
        )
        self._published[service] = info
        self._listener.own.update(_records_of(info))
        await (await self._engine.async_register_service(info, cooperating_responders=True))

    async def withdraw(self, service: Service) -> None:
        """Say goodbye (three times in a quarter of a second) and answer for it no more."""
        info = self._published.pop(service)
        self._listener.own.clear()
        for kept in self._published.values():
            self._listener.own.update(_records_of(kept))
        await (await self._engine.async_unregister_service(info))

    def announce(self) -> None:
        """Multicast every published service once, in a datagram of its own."""
        for info in self._published.values():
            self._engine.zeroconf.async_send(self._engine.zeroconf.generate_service_broadcast(info, None))

    def ask(self) -> None:
        """Multicast the question who is there; answers come by multicast, within 150 ms or after a second."""
        question = DNSOutgoing(_QUERY)
        question.add_question(DNSQuestion(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN))
        self._engine.zeroconf.async_send(question)

    async def close(self) -> None:
        """Withdraw everything and leave, in a quarter of a second; may be called again."""
        self._published.clear()
        self._listener.close()
        await self._engine.async_close()


class _Listener(RecordUpdateListener):
    """Turns one datagram's records into announcements, and keeps the cache empty of them."""

    def __init__(
        self,
        zeroconf: Zeroconf,
        on_service: Callable[[str, tuple[Address, ...]], bool],
        on_goodbye: Callable[[str], None],
    ) -> None:
        self.own: set[DNSRecord] = set()
        self._zeroconf = zeroconf
        self._on_service = on_service
        self._on_goodbye = on_goodbye
        self._awaited: OrderedDict[str, DNSService] = OrderedDict()
        self._heard: set[DNSRecord] = set()
        self._second = 0.0
        self._datagrams = 0
        self._deaf: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Hear nothing more; idempotent."""
        if self in self._zeroconf.listeners:
            self._zeroconf.async_remove_listener(self)
        if self._deaf is not None:
            self._deaf.cancel()

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """One datagram's records, or those that expired; `now` in milliseconds."""
        self._count(now)
        self._heard.update(update.new for update in records)
        services: dict[str, DNSService] = {}
        addresses: dict[str, list[bytes]] = {}
        for update in records[:RECORDS_PER_DATAGRAM]:
            record = update.new
            if isinstance(record, DNSService):
                if record.is_expired(now):
                    self._forget(record)
                elif _LABEL.fullmatch(record.key):
                    services[record.key] = record
            elif isinstance(record, DNSAddress) and not record.is_expired(now):
                addresses.setdefault(record.key, []).append(record.address)
        for name, service in services.items():
            places = _places(addresses.get(service.server_key, []), service.port)
            if places and self._on_service(name.removesuffix("." + SERVICE_TYPE), places):
                self._await_goodbye(service)

    def async_update_records_complete(self) -> None:
        """The same records are in the cache now: out with them."""
        self._uncache(r for r in self._heard if r not in self.own and self._awaited.get(r.key) != r)
        self._heard.clear()

    def _count(self, now: float) -> None:
        """Let the kernel drop what comes in a flood, and hear again after a while."""
        if now - self._second >= 1000:
            self._second, self._datagrams = now, 0
        self._datagrams += 1
        if self._datagrams > DATAGRAMS_PER_S and self._deaf is None:
            for reader in self._zeroconf.engine.readers:
                listen_to_nothing(reader.sock)
            self._deaf = asyncio.get_running_loop().call_later(DEAF_S, self._hear_again)
            _log.info("LAN discovery is flooded, and deaf for %d s", DEAF_S)

    def _hear_again(self) -> None:
        self._deaf = None
        for reader in self._zeroconf.engine.readers:
            listen_only_to(reader.sock, SERVICE_TYPE)

    def _await_goodbye(self, service: DNSService) -> None:
        former = self._awaited.pop(service.key, None)
        self._awaited[service.key] = service
        if former is not None and former != service:
            self._uncache([former])
        if len(self._awaited) > GOODBYES_AWAITED:
            self._uncache([self._awaited.popitem(last=False)[1]])

    def _forget(self, service: DNSService) -> None:
        if self._awaited.get(service.key) == service:
            del self._awaited[service.key]
            self._on_goodbye(service.key.removesuffix("." + SERVICE_TYPE))

    def _uncache(self, records: Iterable[DNSRecord]) -> None:
        cache = self._zeroconf.cache
        cache.async_remove_records([record for record in records if record in cache.cache.get(record.key, ())])


def _joins(interface: str | int) -> bool:
    """Whether the mDNS group can be joined there: where it can't, zeroconf would fail for all, and leave a socket."""
    with suppress(OSError):
        if isinstance(interface, str):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
                trial.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, GROUP4 + socket.inet_aton(interface))
        else:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as trial:
                membership = GROUP6 + struct.pack("@I", interface)
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        return True
    return False


def _places(ips: Sequence[bytes], port: int) -> tuple[Address, ...]:
    found = []
    for packed in dict.fromkeys(ips):
        try:
            found.append(Address.from_packed(packed + port.to_bytes(2, "big")))
        except WireError:
            continue
    return tuple(found[:MAX_ADDRESSES])


def _records_of(info: ServiceInfo) -> set[DNSRecord]:
    return {info.dns_pointer(), info.dns_service(), info.dns_text(), *info.get_address_and_nsec_records()}
