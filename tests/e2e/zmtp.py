"""The client's side of ZMTP 3.0, ZeroMQ's protocol, and of Parley's envelope: all that a stranger needs to annoy."""

import socket
import struct
import zlib

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\x00" + bytes(31)
HELLO, REGISTER, HEARTBEAT, REPORT, FINISHED, FAILED = range(10, 16)
ASSIGN, STOP, COUNT, PUSH, PULL, LEAVE, NORM = 20, 21, 22, 30, 31, 32, 40


def routing_id(node):
    return b"P" + struct.pack("<Q", node)


def _property(name, value):
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


def frame(payload, more=False, command=False):
    flags = (0x01 if more else 0) | (0x04 if command else 0)
    if len(payload) < 256:
        return bytes([flags, len(payload)]) + payload
    return bytes([flags | 0x02]) + struct.pack(">Q", len(payload)) + payload


def message(*parts):
    return b"".join(frame(part, more=i + 1 < len(parts)) for i, part in enumerate(parts))


def connect(port, deadline_s=5):
    return socket.create_connection(("127.0.0.1", port), timeout=deadline_s)


def dealer(port, identity):
    """A socket behind the handshake of a DEALER with this identity; what follows are messages."""
    stranger = connect(port)
    try:
        _shake_hands(stranger, identity)
    except OSError:
        stranger.close()
        raise
    return stranger


def _shake_hands(stranger, identity):
    ready = b"\x05READY" + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", identity)
    stranger.sendall(GREETING + frame(ready, command=True))
    got = b""
    while len(got) < 64:  # the server's greeting; without it the port is no ZeroMQ's and the test worth nothing
        more = stranger.recv(4096)
        if not more:
            raise ConnectionError("closed during the greeting")
        got += more
    if got[0] != 0xff or b"NULL" not in got[:64]:
        raise ConnectionError(f"not a ZMTP greeting: {got[:64]!r}")


def _varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7f | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def job_id(name):
    """FNV-1a of the job's name, as ps/net/admission.cc has it."""
    value = 0xcbf29ce484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return value


def header(kind, job, sender, request_id=1, body=b"", protocol=1, incarnation=0, epoch=0, rank=0):
    """FrameHeader of wire.proto as Protobuf bytes."""
    out = b"\x08" + _varint(protocol) + b"\x10" + _varint(kind) + b"\x19" + struct.pack("<Q", job)
    out += b"\x21" + struct.pack("<Q", sender) + b"\x28" + _varint(incarnation) + b"\x30" + _varint(request_id)
    out += b"\x40" + _varint(epoch) + b"\x50" + _varint(rank)
    return out + (b"\x7a" + _varint(len(body)) + body if body else b"")


def envelope(protobuf):
    return b"PRLY" + struct.pack("<HHII", 1, 0, len(protobuf), zlib.crc32(protobuf)) + protobuf
