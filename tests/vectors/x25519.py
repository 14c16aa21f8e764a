"""X25519 (RFC 7748) in plain Python. For checking, not for use: it leaks keys through timing."""

import functools

P = 2**255 - 19
A24 = 121665
BASE = (9).to_bytes(32, "little")


@functools.lru_cache(maxsize=None)
def x25519(scalar, u):
    """RFC 7748, section 5: the Montgomery ladder."""
    k = int.from_bytes(scalar, "little")
    k = k & ~7 & (2**254 - 1) | 2**254
    x1 = (int.from_bytes(u, "little") & (2**255 - 1)) % P
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for bit in range(254, -1, -1):
        kt = k >> bit & 1
        if swap ^ kt:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swap = kt
        a, b = x2 + z2, x2 - z2
        aa, bb = a * a % P, b * b % P
        e = aa - bb
        da, cb = (x3 - z3) * a % P, (x3 + z3) * b % P
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + A24 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def public(private):
    return x25519(private, BASE)


def refusal(key):
    """Why a node refuses the key, or None."""
    if len(key) != 32:
        return "length"
    if int.from_bytes(key, "little") >= P:
        return "not canonical"
    # A clamped scalar is a multiple of 8, the order of all these points divides 8.
    if x25519(bytes(32), key) == bytes(32):
        return "low order"
    return None
