"""The wire scheme a second time: docs/wire-scheme.md in Python's standard library, sharing no code with the Rust.

For checking, not for use. AES-GCM is in aes_gcm.py, X25519 in x25519.py.
"""

import base64
import hashlib
import hmac
import ipaddress
import struct

from aes_gcm import gcm_seal
from x25519 import x25519

# suite: AES key bytes, ICV bytes
SUITES = {"aes128gcm8": (16, 8), "aes128gcm16": (16, 16), "aes256gcm16": (32, 16)}
SALT_LEN = 4
SCHEME = b"secureoverlay/1"
SPIS = 2**32 - 256
NEXT_HEADER_IPIP, NEXT_HEADER_UDP = 4, 17


def hkdf_extract(salt, ikm):
    """RFC 5869, section 2.2."""
    return hmac.new(salt or bytes(32), ikm, hashlib.sha256).digest()


def hkdf_expand(prk, info, length):
    """RFC 5869, section 2.3."""
    okm, block, counter = b"", b"", 1
    while len(okm) < length:
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha256).digest()
        okm, counter = okm + block, counter + 1
    return okm[:length]


def addr16(text):
    address = ipaddress.ip_address(text)
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def announced(sender, key):
    """An end as it enters a derivation: `sender` is an entry of `senders`, `key` its key pair."""
    return {
        "instance": sender["instance"],
        "address": sender["address"],
        "key": base64.b64decode(sender["publicKey"]),
        "private": key and bytes.fromhex(key),
    }


def by_boot_id(node):
    digits = node["bootId"].replace("-", "").encode("ascii")
    return {"instance": node["bootId"], "address": node["address"], "key": digits, "private": None}


def offset(key, message):
    digest = hmac.new(key, message, hashlib.sha256).digest()
    return struct.unpack(">I", digest[:4])[0] % SPIS


def f(generation, src):
    message = b"sender" + addr16(src["address"]) + src["instance"].encode("ascii")
    return offset(base64.b64decode(generation["spiSeed"]), message)


def g(dst):
    return offset(SCHEME, b"receiver" + dst["key"])


def spi(generation, src, dst):
    return 256 + (f(generation, src) + g(dst)) % SPIS


def shared(generation, src, dst):
    """What the key agreement adds to the ring key: nothing where identities are boot IDs."""
    if generation["identities"] == "bootId":
        return b""
    private, public = (src["private"], dst["key"]) if src["private"] else (dst["private"], src["key"])
    secret = x25519(private, public)
    assert secret != bytes(32), "a key of low order"
    return secret


def prk(generation, src, dst):
    return hkdf_extract(SCHEME, base64.b64decode(generation["key"]) + shared(generation, src, dst))


def info(generation, src, dst):
    ids = generation["suite"] + "\0" + generation["uid"] + src["instance"]
    addresses = addr16(src["address"]) + addr16(dst["address"])
    keys = src["key"] + dst["key"]
    return ids.encode("ascii") + addresses + keys + struct.pack(">I", spi(generation, src, dst))


def sa_key(generation, src, dst):
    """Key and salt of the SA from src to dst."""
    key_len, _ = SUITES[generation["suite"]]
    okm = hkdf_expand(prk(generation, src, dst), info(generation, src, dst), key_len + SALT_LEN)
    return okm[:key_len], okm[key_len:]


def esp(generation, src, dst, sequence, iv, payload, next_header=NEXT_HEADER_IPIP):
    """The ESP packet, from SPI to ICV, that carries `payload` (RFC 4303, RFC 4106)."""
    key, salt = sa_key(generation, src, dst)
    pad_len = -(len(payload) + 2) % 4
    plaintext = payload + bytes(range(1, pad_len + 1)) + bytes([pad_len, next_header])
    header_spi = struct.pack(">I", spi(generation, src, dst))
    ciphertext, tag = gcm_seal(key, salt + iv, header_spi + struct.pack(">Q", sequence), plaintext)
    icv = tag[: SUITES[generation["suite"]][1]]
    return header_spi + struct.pack(">I", sequence % 2**32) + iv + ciphertext + icv


def probe(kind, tested_spi, nonce):
    return b"SOVP" + struct.pack(">BBI", 1, {"ping": 1, "answer": 2}[kind], tested_spi) + nonce


def udp(src, dst, port, data):
    """RFC 768, from and to the same port; the checksum covers the pseudo-header of the addresses' family."""
    length = 8 + len(data)
    ends = b"".join(ipaddress.ip_address(end["address"]).packed for end in (src, dst))
    ports = struct.pack(">HHH", port, port, length)
    words = ends + struct.pack(">II", length, NEXT_HEADER_UDP) + ports + data
    words += bytes(len(words) % 2)
    total = sum(struct.unpack(f">{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ports + struct.pack(">H", ~total & 0xFFFF or 0xFFFF) + data
