"""Peer exchange: members tell each other where the others are, each in a record signed by the device itself."""

from __future__ import annotations

from collections.abc import Sequence

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.keys import Identity, NetworkKey, verify
from proxy_vpn.wire.messages import Record, SignedRecord, decode, encode

RECORD_LIFE_S = 3600.0
REISSUE_S = 10.0
RECORDS_PER_MESSAGE = 60
RECORD_LIMIT_BYTES = 1024
ADDRESSES_PER_RECORD = 16
_CONTEXT = b"pvpn1 record"


def make_record(
    key: NetworkKey, identity: Identity, name: str, addresses: Sequence[Address], unix_time: float
) -> bytes:
    """Our own record, signed."""
    packed = [address.packed() for address in addresses[:ADDRESSES_PER_RECORD]]
    record = encode(Record(identity.id, name, packed, unix_time, unix_time + RECORD_LIFE_S))
    return encode(SignedRecord(record, identity.sign(_CONTEXT + key.network_id + record)))


def read_record(key: NetworkKey, data: bytes, unix_time: float) -> tuple[Record, list[Address]]:
    """A record whose signature holds and whose time has not passed; raises WireError."""
    if len(data) > RECORD_LIMIT_BYTES:
        raise WireError("a peer record is too long")
    signed = decode(data, SignedRecord)
    record = decode(signed.record, Record)
    if not verify(record.identity, signed.signature, _CONTEXT + key.network_id + signed.record):
        raise WireError("a peer record's signature does not hold")
    if not record.issued - RECORD_LIFE_S <= unix_time <= min(record.expires, record.issued + RECORD_LIFE_S):
        raise WireError("a peer record has expired")
    if len(record.addresses) > ADDRESSES_PER_RECORD:
        raise WireError("a peer record has too many addresses")
    return record, [Address.from_packed(packed) for packed in record.addresses]


def newer(data: bytes, than: bytes) -> bool:
    """Whether a verified record was issued at least 10 s after another one: nobody may have us pass on a stream."""
    if not than:
        return True
    try:
        return _issued(data) - _issued(than) >= REISSUE_S
    except WireError:
        return False


def _issued(data: bytes) -> float:
    return decode(decode(data, SignedRecord).record, Record).issued
