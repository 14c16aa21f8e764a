"""Keeps wire-v1.json and the tables of docs/wire-scheme.md true to scheme.py.

    check.py check   fails where one of them is not what scheme.py computes from the file's inputs
    check.py write   writes both anew
    check.py serve   answers derivations, one JSON object a line, for comparison with another implementation
"""

import base64
import json
import pathlib
import sys

sys.dont_write_bytecode = True

import scheme  # noqa: E402
import x25519  # noqa: E402
from vector_self_test import self_test  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
VECTORS = HERE / "wire-v1.json"
DOCUMENT = HERE.parent.parent / "docs" / "wire-scheme.md"
BEGIN, END = "<!-- vectors: begin -->\n", "<!-- vectors: end -->"


def agreement_self_test():
    """X25519 against the vectors of its standard."""
    vectors = json.loads((HERE / "rfc7748.json").read_text())
    for vector in vectors["multiplications"]:
        scalar, u = bytes.fromhex(vector["scalar"]), bytes.fromhex(vector["u"])
        assert x25519.x25519(scalar, u).hex() == vector["product"], "X25519: RFC 7748, section 5.2"
    once = next(vector for vector in vectors["iterated"] if vector["times"] == 1)
    assert x25519.public(x25519.BASE).hex() == once["scalar"], "X25519: RFC 7748, section 5.2, iterated"
    agreement = vectors["agreement"]
    alice, bob = bytes.fromhex(agreement["alice"]), bytes.fromhex(agreement["bob"])
    assert x25519.public(alice).hex() == agreement["alicePublic"], "X25519: RFC 7748, section 6.1"
    assert x25519.public(bob).hex() == agreement["bobPublic"], "X25519: RFC 7748, section 6.1"
    for private, public in [(alice, bob), (bob, alice)]:
        shared = x25519.x25519(private, x25519.public(public)).hex()
        assert shared == agreement["shared"], "X25519: RFC 7748, section 6.1"


def ends(vectors, generation):
    """The ends by name: `a.0` is the first entry of a's senders, and a itself where identities are boot IDs."""
    if generation["identities"] == "bootId":
        return {name: scheme.by_boot_id(node) for name, node in vectors["nodes"].items()}
    keys = vectors["keys"]
    return {
        f"{name}.{at}": scheme.announced(sender, keys[sender["key"]]["private"])
        for name, node in vectors["nodes"].items()
        for at, sender in enumerate(node["senders"])
    }


def generations(vectors):
    return {g["id"]: g for ring in ("ring", "bootIdRing") for g in vectors[ring]["generations"]}


def hex_spi(spi):
    return f"{spi:#010x}"


def computed(vectors):
    """The same vectors with all results computed from the inputs."""
    for key in vectors["keys"].values():
        key["public"] = x25519.public(bytes.fromhex(key["private"])).hex()
    for node in vectors["nodes"].values():
        for sender in node["senders"]:
            public = bytes.fromhex(vectors["keys"][sender["key"]]["public"])
            sender["publicKey"] = base64.b64encode(public).decode("ascii")
    by_id = generations(vectors)

    def parts(entry):
        generation = by_id[entry["generation"]]
        of = ends(vectors, generation)
        return generation, of[entry["src"]], of[entry["dst"]]

    for entry in vectors["derivations"]:
        generation, src, dst = parts(entry)
        key, salt = scheme.sa_key(generation, src, dst)
        entry["f"], entry["g"] = hex_spi(scheme.f(generation, src)), hex_spi(scheme.g(dst))
        entry["spi"] = hex_spi(scheme.spi(generation, src, dst))
        entry["shared"] = scheme.shared(generation, src, dst).hex()
        entry["prk"] = scheme.prk(generation, src, dst).hex()
        entry["info"] = scheme.info(generation, src, dst).hex()
        entry["key"], entry["salt"] = key.hex(), salt.hex()
    for entry in vectors["packets"]:
        iv, inner = bytes.fromhex(entry["iv"]), bytes.fromhex(entry["inner"])
        entry["esp"] = scheme.esp(*parts(entry), entry["sequence"], iv, inner).hex()
    for entry in vectors["probes"]:
        generation, src, dst = parts(entry)
        tested_generation, *tested = parts(entry["tested"])
        tested_spi = scheme.spi(tested_generation, *tested)
        data = scheme.probe(entry["kind"], tested_spi, bytes.fromhex(entry["nonce"]))
        udp = scheme.udp(src, dst, entry["port"], data)
        iv = bytes.fromhex(entry["iv"])
        packet = scheme.esp(generation, src, dst, entry["sequence"], iv, udp, scheme.NEXT_HEADER_UDP)
        entry["probe"], entry["udp"], entry["esp"] = data.hex(), udp.hex(), packet.hex()
    for entry in vectors["collisions"]:
        spis = set()
        for sa in entry["sas"]:
            dst = {"key": bytes.fromhex(vectors["keys"][sa["dstKey"]]["public"])}
            spis.add(scheme.spi(by_id[sa["generation"]], sa["src"], dst))
        assert len(spis) == 1, f"{entry['what']}: different SPIs {spis}"
        entry["spi"] = hex_spi(spis.pop())
    for entry in vectors["refusedKeys"]:
        entry["why"] = x25519.refusal(bytes.fromhex(entry["key"]))
        assert entry["why"], f"not refused: {entry['key']}"
    return vectors


def wrapped(text):
    return ["", "```text", *(text[at : at + 96] for at in range(0, len(text), 96)), "```"]


def tables(vectors):
    """The document's part between BEGIN and END."""
    lines = ["", "| sender | instance | address | key pair | Node UID |", "|---|---|---|---|---|"]
    for name, node in vectors["nodes"].items():
        for at, sender in enumerate(node["senders"]):
            lines.append(
                f"| {name}.{at} | `{sender['instance']}` | {sender['address']} | {sender['key']} "
                f"| `{node['nodeUid']}` |"
            )
    lines += ["", "| key pair | private | public |", "|---|---|---|"]
    lines += [f"| {name} | `{key['private']}` | `{key['public']}` |" for name, key in vectors["keys"].items()]
    lines += ["", "| node under boot IDs | address | boot ID |", "|---|---|---|"]
    lines += [f"| {name} | {node['address']} | `{node['bootId']}` |" for name, node in vectors["nodes"].items()]
    lines += ["", "| generation | suite | from → to | f | g | SPI | AES key | salt |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    by_id = generations(vectors)
    for entry in vectors["derivations"]:
        generation = by_id[entry["generation"]]
        lines.append(
            f"| {generation['id']} | {generation['suite']} | {entry['src']} → {entry['dst']} | `{entry['f']}` "
            f"| `{entry['g']}` | `{entry['spi']}` | `{entry['key']}` | `{entry['salt']}` |"
        )
    first = vectors["derivations"][0]
    lines += ["", f"First row: shared secret `{first['shared']}`, PRK `{first['prk']}`, and `info`,"]
    lines += [f"{len(first['info']) // 2} bytes:", *wrapped(first["info"])]
    lines += ["", "Whole packets, from the SPI to the ICV:"]
    for entry in vectors["packets"]:
        lines += [
            "",
            f"Generation {entry['generation']}, {entry['src']} → {entry['dst']}, sequence number "
            f"{entry['sequence']:#x}, IV `{entry['iv']}`, inner packet, then ESP:",
            *wrapped(entry["inner"]),
            *wrapped(entry["esp"]),
        ]
    for entry in vectors["probes"]:
        tested = entry["tested"]
        lines += [
            "",
            f"Probe: {entry['kind']} on port {entry['port']} by generation {entry['generation']}, {entry['src']} → "
            f"{entry['dst']}, about generation {tested['generation']}, {tested['src']} → {tested['dst']}; UDP, then ESP:",
            *wrapped(entry["udp"]),
            *wrapped(entry["esp"]),
        ]
    lines += ["", "Collisions, each of two SAs with one SPI toward one receiver:", ""]
    lines += ["| what | SPI | generation, instance, address, key of the receiver |", "|---|---|---|"]
    for entry in vectors["collisions"]:
        sas = "<br>".join(
            f"{sa['generation']}, `{sa['src']['instance']}`, {sa['src']['address']}, {sa['dstKey']}"
            for sa in entry["sas"]
        )
        lines.append(f"| {entry['what']} | `{entry['spi']}` | {sas} |")
    lines += ["", "Public keys that are refused:", "", "| bytes | why |", "|---|---|"]
    lines += [f"| `{entry['key']}` | {entry['why']} |" for entry in vectors["refusedKeys"]]
    return "\n".join([*lines, ""])


def check(write):
    stored = json.loads(VECTORS.read_text())
    vectors = computed(json.loads(VECTORS.read_text()))
    before, rest = DOCUMENT.read_text().split(BEGIN)
    section, after = rest.split(END)
    if write:
        VECTORS.write_text(json.dumps(vectors, indent=2, ensure_ascii=False) + "\n")
        DOCUMENT.write_text(before + BEGIN + tables(vectors) + END + after)
        return
    assert stored == vectors, f"{VECTORS} is not what scheme.py computes from its inputs"
    assert section == tables(vectors), f"the tables of {DOCUMENT} are not those of {VECTORS}: `check.py write`"


def serve():
    for line in sys.stdin:
        request = json.loads(line)
        generation = request["generation"]
        if generation["identities"] == "bootId":
            src, dst = scheme.by_boot_id(request["src"]), scheme.by_boot_id(request["dst"])
        else:
            # The receiver's public key comes from its private one: so the key agreement is checked as well.
            src, dst = request["src"], request["dst"]
            src["publicKey"] = base64.b64encode(x25519.public(bytes.fromhex(src["private"])))
            dst["publicKey"] = base64.b64encode(x25519.public(bytes.fromhex(dst["private"])))
            src, dst = scheme.announced(src, src["private"]), scheme.announced(dst, None)
        key, salt = scheme.sa_key(generation, src, dst)
        reply = {"spi": scheme.spi(generation, src, dst), "key": key.hex(), "salt": salt.hex()}
        print(json.dumps(reply), flush=True)


def main():
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command not in ("check", "write", "serve"):
        sys.exit(__doc__)
    self_test()
    agreement_self_test()
    if command == "serve":
        serve()
    else:
        check(write=command == "write")


main()
