"""Carries out gRPC calls as orders say and prints one line of JSON for each: how it ended and all that came.

    call.py --target HOST:PORT|unix:/PATH --orders FILE

Orders and lines are those of the Go client (tests/go/call), so that tests can put one table to both.
"""

import argparse
import base64
import hashlib
import json
import os
import queue
import time
from pathlib import Path

import grpc

# Content of larger messages is not told, only their size and digest.
SHOWN = 64 << 10
# The field that holds the padding: one that no service knows.
PADDING = 1000
COMPRESSIONS = {"": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}


def varint(value):
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(made) + bytes([value])


def message(order):
    pad = order.get("pad", 0)
    padding = varint(PADDING << 3 | 2) + varint(pad) + bytes(pad) if pad else b""
    return base64.b64decode(order.get("head", "")) + padding + base64.b64decode(order.get("tail", ""))


def tell(answer):
    shown = base64.b64encode(answer).decode() if len(answer) <= SHOWN else None
    return {"size": len(answer), "sha256": hashlib.sha256(answer).hexdigest(), "bytes": shown}


def pairs(metadata):
    """Metadata as grpcio wants it: a pair for each value, bytes where the name ends in -bin."""
    binary = lambda name: name.endswith("-bin")
    return [(name, base64.b64decode(value) if binary(name) else value) for name, values in (metadata or {}).items() for value in values]


def named(metadata):
    told = {}
    for name, value in metadata or ():
        told.setdefault(name, []).append(base64.b64encode(value).decode() if isinstance(value, bytes) else value)
    return told


class Outgoing:
    """Messages that go out one by one: all at once, or each when it is let through."""

    def __init__(self, messages, in_turns, stays_open):
        self.left, self.in_turns, self.stays_open = list(messages), in_turns, stays_open
        self.turns = queue.Queue()
        self.turns.put(True)

    def __iter__(self):
        return self

    def __next__(self):
        if self.in_turns and not self.turns.get():
            raise StopIteration
        if not self.left:
            if self.stays_open:
                self.turns.queue.clear()
                while self.turns.get():
                    pass
            raise StopIteration
        return self.left.pop(0)

    def answered(self):
        self.turns.put(True)

    def ended(self):
        self.turns.put(False)


def call(target, order):
    options = [("grpc.max_receive_message_length", order.get("max_receive") or 64 << 20), ("grpc.max_send_message_length", -1)]
    outcome = {"code": 0, "message": "", "status": "", "header": {}, "trailer": {}, "answers": []}
    timeout = order.get("timeout_ms", 0) / 1000 or None
    kind, cancel_after = order["kind"], order.get("cancel_after")
    start = time.monotonic()
    with grpc.insecure_channel(target, options=options) as channel:
        one_message, one_answer = kind in ("unary", "server"), kind in ("unary", "client") and cancel_after is None
        messages = [message(one) for one in order["messages"]]
        outgoing = Outgoing(messages, order.get("in_turns", False), order.get("stays_open", False))
        terms = {"metadata": pairs(order.get("metadata")), "timeout": timeout, "compression": COMPRESSIONS[order.get("compression", "")]}
        given = messages[0] if one_message else outgoing
        # A call with one answer tells nothing before its end. On the wire it is the same as one with many, which does.
        if one_answer:
            make = channel.unary_unary if one_message else channel.stream_unary
            flying = make(order["method"]).future(given, **terms)
        else:
            make = channel.unary_stream if one_message else channel.stream_stream
            flying = make(order["method"])(given, **terms)
        try:
            if cancel_after == 0:
                flying.initial_metadata()
                flying.cancel()
            for answer in [flying.result()] if one_answer else flying:
                outcome["answers"].append(tell(answer))
                outgoing.answered()
                if len(outcome["answers"]) == cancel_after:
                    flying.cancel()
        except (grpc.RpcError, grpc.FutureCancelledError):
            pass
        outgoing.ended()
        outcome["code"], outcome["message"] = flying.code().value[0], flying.details() or ""
        outcome["header"], outcome["trailer"] = named(flying.initial_metadata()), named(flying.trailing_metadata())
        outcome["status"] = (outcome["trailer"].pop("grpc-status-details-bin", None) or [""])[0]
    outcome["took_ms"] = int((time.monotonic() - start) * 1000)
    return outcome


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--target", required=True)
    arguments.add_argument("--orders", required=True, type=Path)
    given = arguments.parse_args()
    for order in json.loads(given.orders.read_text()):
        print(json.dumps(call(given.target, order)), flush=True)
    # All channels are closed. The library's own end has been seen to wait for ever after a call that was cancelled.
    os._exit(0)


if __name__ == "__main__":
    main()
