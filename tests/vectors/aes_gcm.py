"""AES-GCM in Python's standard library. For checking, not for use: it is slow and leaks its key through timing."""

import struct


def times_x(byte):
    """Times x in AES's field (FIPS 197, section 4.2)."""
    return (byte << 1) ^ (0x11B if byte & 0x80 else 0)


def make_sbox():
    """FIPS 197, section 5.1.1: the inverse in the field, by logarithms to the base x + 1, then an affine map."""
    powers, value = [], 1
    for _ in range(255):
        powers.append(value)
        value ^= times_x(value)
    log = {value: exponent for exponent, value in enumerate(powers)}
    box = []
    for value in range(256):
        inverse = powers[-log[value] % 255] if value else 0
        spread = inverse * 0x101
        rotated = inverse
        for shift in range(1, 5):
            rotated ^= (spread >> (8 - shift)) & 0xFF
        box.append(rotated ^ 0x63)
    return box


SBOX = make_sbox()


def expand_key(key):
    """FIPS 197, section 5.2: the round keys, 16 bytes each."""
    words = [key[at : at + 4] for at in range(0, len(key), 4)]
    key_words, constant = len(words), 1
    while len(words) < 4 * (key_words + 7):
        word = words[-1]
        if len(words) % key_words == 0:
            word = bytes(SBOX[byte] for byte in word[1:] + word[:1])
            word = bytes([word[0] ^ constant]) + word[1:]
            constant = times_x(constant)
        elif key_words > 6 and len(words) % key_words == 4:
            word = bytes(SBOX[byte] for byte in word)
        words.append(xor(words[-key_words], word))
    return [b"".join(words[at : at + 4]) for at in range(0, len(words), 4)]


def xor(a, b):
    return bytes(x ^ y for x, y in zip(a, b))


def aes(round_keys, block):
    """FIPS 197, section 5.1."""
    state = xor(block, round_keys[0])
    for number, round_key in enumerate(round_keys[1:], 1):
        state = bytes(SBOX[state[(at + 4 * (at % 4)) % 16]] for at in range(16))
        if number < len(round_keys) - 1:
            mixed = []
            for at in range(0, 16, 4):
                column = state[at : at + 4]
                total = column[0] ^ column[1] ^ column[2] ^ column[3]
                mixed += [column[i] ^ total ^ times_x(column[i] ^ column[(i + 1) % 4]) for i in range(4)]
            state = bytes(mixed)
        state = xor(state, round_key)
    return state


def ghash(subkey, data):
    """SP 800-38D, section 6.4; `data` is whole blocks."""
    h, y = int.from_bytes(subkey, "big"), 0
    for at in range(0, len(data), 16):
        y ^= int.from_bytes(data[at : at + 16], "big")
        product, v = 0, h
        for bit in range(127, -1, -1):
            if y >> bit & 1:
                product ^= v
            v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
        y = product
    return y.to_bytes(16, "big")


def gcm_seal(key, nonce, aad, plaintext):
    """Ciphertext and 128-bit tag (SP 800-38D, section 7.1, for 96-bit nonces)."""
    round_keys = expand_key(key)

    def keystream(counter):
        return aes(round_keys, nonce + struct.pack(">I", counter))

    ciphertext = b""
    for number, at in enumerate(range(0, len(plaintext), 16)):
        ciphertext += xor(plaintext[at : at + 16], keystream(number + 2))

    def padded(data):
        return data + bytes(-len(data) % 16)

    lengths = struct.pack(">QQ", 8 * len(aad), 8 * len(ciphertext))
    digest = ghash(aes(round_keys, bytes(16)), padded(aad) + padded(ciphertext) + lengths)
    return ciphertext, xor(digest, keystream(1))
