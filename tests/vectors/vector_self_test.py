"""The parts of the scheme against the vectors of their standards, so that agreement with others means something."""

import json
import pathlib

import aes_gcm
import scheme

HERE = pathlib.Path(__file__).resolve().parent


def self_test():
    """AES, AES-GCM and HKDF."""
    for length, expected in [
        (16, "69c4e0d86a7b0430d8cdb78070b4c55a"),
        (32, "8ea2b7ca516745bfeafc49904b496089"),
    ]:
        block = aes_gcm.aes(aes_gcm.expand_key(bytes(range(length))), bytes(17 * x for x in range(16)))
        assert block.hex() == expected, "AES: FIPS 197, appendix C"
    ciphertext, tag = aes_gcm.gcm_seal(
        bytes.fromhex("feffe9928665731c6d6a8f9467308308"),
        bytes.fromhex("cafebabefacedbaddecaf888"),
        bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
        bytes.fromhex(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        ),
    )
    assert tag.hex() == "5bc94fbc3221a5db94fae95ae7121a47", "AES-GCM: the GCM specification, test case 4"
    for vector in json.loads((HERE / "rfc5869.json").read_text())["sha256"]:
        salt, ikm, info = (bytes.fromhex(vector[name]) for name in ("salt", "ikm", "info"))
        prk = scheme.hkdf_extract(salt, ikm)
        assert prk.hex() == vector["prk"], "HKDF-Extract: " + vector["name"]
        okm = scheme.hkdf_expand(prk, info, vector["length"])
        assert okm.hex() == vector["okm"], "HKDF-Expand: " + vector["name"]
