#!/usr/bin/env python3
"""Writes codecs.txt beside this file: what numpy makes of the payload formats in proto/PROTOCOL.md.

Run with a Python that has numpy (the committed file is from 1.24):
    /usr/bin/python3 tests/golden/make_codecs.py

Values come from one generator, so that the test need not store them:
    state = 1664525 * state + 1013904223 (mod 2^32), from state 2463534242
    u = (state >> 8) * 2^-23 - 1, in [-1, 1); value i is u * 2^(-(state >> 5) % 12), exact in float32
In cases that say `special`, elements 3, 20 and 33 of step 1 are NaN, infinity and -infinity. The residual
of a step is the next one's; fp16 and bf16 have none, and all zeros stand for it.

Lines: "case NAME CODEC N BLOCK SHARE special|plain", then for each step "step BYTES CRC-OF-PAYLOAD
CRC-OF-RESIDUAL CRC-OF-DECODED" (CRC-32, hex, over little-endian bytes), with the payload in hex where it is
short.
"""

import math
import os
import struct
import zlib

import numpy as np

STEPS = 3
PIECE = 65536
F32_MAX = np.finfo(np.float32).max


def generate(n):
    state, out = generate.state, np.empty(n, np.float32)
    for i in range(n):
        state = (1664525 * state + 1013904223) % 2**32
        out[i] = ((state >> 8) * 2.0**-23 - 1.0) * 2.0 ** -((state >> 5) % 12)
    generate.state = state
    return out


def blocks(n, size):
    return [slice(begin, min(begin + size, n)) for begin in range(0, n, size)]


def fp16_bits(x):
    finite = np.isfinite(x)
    return np.where(finite, np.clip(x, -65504, 65504), x).astype(np.float16)


def fp16(x, block, share):
    halves = fp16_bits(x)
    return halves.tobytes(), halves.astype(np.float32), np.zeros_like(x)


def bf16(x, block, share):
    bits = x.view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    overflow = np.isfinite(x) & (upper & 0x7FFF == 0x7F80)
    upper = np.where(overflow, upper - 1, upper)
    upper = np.where(np.isnan(x), bits >> 16 | 0x40, np.where(np.isinf(x), bits >> 16, upper)).astype(np.uint16)
    return upper.tobytes(), (upper.astype(np.uint32) << 16).view(np.float32), np.zeros_like(x)


def int8(x, block, share):
    payload, decoded, rest = b"", np.empty_like(x), np.empty_like(x)
    for part in blocks(len(x), block):
        v = x[part]
        finite = np.isfinite(v)
        largest = np.max(np.abs(v[finite]), initial=np.float32(0))
        scale = inverse = np.float32(0)
        if largest >= np.float32(1e-35):
            scale = min(largest / np.float32(127), F32_MAX / np.float32(128))
            inverse = np.float32(127) / largest
        codes = np.where(finite, np.rint(np.where(finite, v, 0) * inverse), -128).astype(np.int8)
        decoded[part] = np.where(finite, codes.astype(np.float32) * scale, np.float32(np.nan))
        rest[part] = np.where(finite, v - decoded[part], 0)
        payload += struct.pack("<f", scale) + codes.tobytes()
    return payload, decoded, rest


def lane_mean(v, count):
    lanes = np.zeros(16, np.float32)
    for group in np.pad(v, (0, -len(v) % 16)).reshape(-1, 16):
        lanes = lanes + group
    total = np.float32(0)
    for lane in lanes:
        total = total + lane
    return total / np.float32(count) if count else np.float32(0)


def one_bit(x, block, share):
    payload, decoded, rest = b"", np.empty_like(x), np.empty_like(x)
    for part in blocks(len(x), block):
        v = x[part]
        negative = np.signbit(v)
        if np.isfinite(v).all():
            high = lane_mean(np.maximum(v, 0), np.count_nonzero(~negative))
            low = lane_mean(np.minimum(v, 0), np.count_nonzero(negative))
            decoded[part] = np.where(negative, low, high)
            rest[part] = v - decoded[part]
        else:
            high = low = decoded[part] = np.float32(np.nan)
            negative = np.zeros_like(negative)
            rest[part] = np.where(np.isfinite(v), v, 0)
        payload += struct.pack("<ff", high, low) + np.packbits(negative, bitorder="little").tobytes()
    return payload, decoded, rest


def top_k(x, block, share):
    payload, decoded, rest = b"", np.zeros_like(x), np.where(np.isfinite(x), x, 0)
    for part in blocks(len(x), PIECE):
        v = x[part]
        kept = min(max(math.ceil(len(v) * float(np.float32(share)) * (1 - 2**-20)), 1), len(v))
        magnitudes = (v.view(np.uint32) & 0x7FFFFFFF).astype(np.int64)
        chosen = np.sort(np.argsort(-magnitudes, kind="stable")[:kept])
        finite = chosen[np.isfinite(v[chosen])]
        largest = np.max(np.abs(v[finite]), initial=np.float32(0))
        exponent = max((math.frexp(largest)[1] - 1 if largest else -127) - 14, -126)
        scaled = v[chosen] * np.float32(2.0**-exponent)
        if exponent == 113:
            scaled = np.where(np.isfinite(scaled), np.clip(scaled, -32752, 32752), scaled)
        halves = fp16_bits(scaled)
        values = halves.astype(np.float32) * np.float32(2.0**exponent)
        decoded[part][chosen] = values
        rest[part][chosen] = np.where(np.isfinite(v[chosen]), v[chosen] - values, 0)
        payload += struct.pack("<h", exponent) + chosen.astype(np.uint16).tobytes() + halves.tobytes()
    return payload, decoded, rest


def crc(data):
    return f"{zlib.crc32(data):08x}"


def case(name, codec, n, block=16, share=0.02, special=False):
    generate.state = 2463534242
    lines = [f"case {name} {codec.__name__} {n} {block} {share} {'special' if special else 'plain'}"]
    residual = np.zeros(n, np.float32)
    for step in range(STEPS):
        x = generate(n)
        if special and step == 1:
            x[3], x[20], x[33] = np.nan, np.inf, -np.inf
        payload, decoded, residual = codec(x + residual, block, share)
        line = f"step {len(payload)} {crc(payload)} {crc(residual.tobytes())} {crc(decoded.tobytes())}"
        lines.append(line + (f" {payload.hex()}" if len(payload) <= 96 else ""))
    return lines


def main():
    np.seterr(all="ignore")
    lines = [f"# Written by make_codecs.py with numpy {np.__version__}; see there for the format."]
    for codec in (fp16, bf16, int8, one_bit, top_k):
        short = codec.__name__
        lines += case(f"{short}_short", codec, 21, 16, 0.25)
        lines += case(f"{short}_one", codec, 1, 16, 0.25)
        lines += case(f"{short}_special", codec, 100, 40, 0.1, special=True)
        lines += case(f"{short}_special_few", codec, 100, 1000, 0.01, special=True)
        lines += case(f"{short}_long", codec, 70001, 1024, 0.02)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "codecs.txt"), "w") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
