"""Keeps wire-v1.json and the tables of docs/wire-scheme.md true to scheme.py.

    check.py check   fails where one of them is not what scheme.py computes from the file's inputs
    check.py write   writes both anew
    check.py serve   answers derivations, one JSON object a line, for comparison with another implementation
"""

import json
import pathlib
import sys

sys.dont_write_bytecode = True

import scheme  # noqa: E402
from vector_self_test import self_test  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
VECTORS = HERE / "wire-v1.json"
DOCUMENT = HERE.parent.parent / "docs" / "wire-scheme.md"
BEGIN, END = "<!-- vectors: begin -->\n", "<!-- vectors: end -->"


def computed(vectors):
    """The same vectors with all results computed from the inputs."""
    generations = {generation["id"]: generation for generation in vectors["ring"]["generations"]}
    nodes = vectors["nodes"]

    def parts(entry):
        return generations[entry["generation"]], nodes[entry["src"]], nodes[entry["dst"]]

    for entry in vectors["derivations"]:
        generation, src, dst = parts(entry)
        key, salt = scheme.sa_key(generation, src, dst)
        entry["spi"] = f"{scheme.spi(generation, src):#010x}"
        entry["info"] = scheme.info(generation, src, dst).hex()
        entry["key"], entry["salt"] = key.hex(), salt.hex()
    for entry in vectors["packets"]:
        iv, inner = bytes.fromhex(entry["iv"]), bytes.fromhex(entry["inner"])
        entry["esp"] = scheme.esp(*parts(entry), entry["sequence"], iv, inner).hex()
    collision = vectors["collision"]
    seed = {"spiSeed": generations[collision["generation"]]["spiSeed"]}
    spis = {scheme.spi(seed, {"addr": addr, "node": ""}) for addr in collision["addrs"]}
    assert len(spis) == 1, f"the addresses of the collision have different SPIs: {spis}"
    collision["spi"] = f"{spis.pop():#010x}"
    return vectors


def tables(vectors):
    """The document's part between BEGIN and END."""
    lines = ["", "| node | address | Node UID | boot ID |", "|---|---|---|---|"]
    for name, node in vectors["nodes"].items():
        lines.append(f"| {name} | {node['addr']} | `{node['node']}` | `{node['boot']}` |")
    lines += ["", "| generation | suite | from → to | SPI | AES key | salt |", "|---|---|---|---|---|---|"]
    for entry in vectors["derivations"]:
        suite = next(g["suite"] for g in vectors["ring"]["generations"] if g["id"] == entry["generation"])
        lines.append(
            f"| {entry['generation']} | {suite} | {entry['src']} → {entry['dst']} | `{entry['spi']}` "
            f"| `{entry['key']}` | `{entry['salt']}` |"
        )
    first = vectors["derivations"][0]
    lines += ["", f"`info` of the first row, {len(first['info']) // 2} bytes:", "", "```text"]
    lines += [first["info"][at : at + 96] for at in range(0, len(first["info"]), 96)]
    lines += ["```", "", "Whole packets, from the SPI to the ICV:", ""]
    for entry in vectors["packets"]:
        lines += [
            f"Generation {entry['generation']}, {entry['src']} → {entry['dst']}, "
            f"sequence number {entry['sequence']:#x}, IV `{entry['iv']}`, inner packet, then ESP:",
            "",
            "```text",
        ]
        for field in ("inner", "esp"):
            text = entry[field]
            lines += [text[at : at + 96] for at in range(0, len(text), 96)] + [""]
        lines[-1:] = ["```", ""]
    collision = vectors["collision"]
    lines += [
        f"A collision: under generation {collision['generation']}, at incarnation 0, "
        f"{collision['addrs'][0]} and {collision['addrs'][1]} both have the SPI `{collision['spi']}`, "
        f"which goes to {collision['addrs'][0]}.",
        "",
    ]
    return "\n".join(lines)


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
        generation, src, dst = request["generation"], request["src"], request["dst"]
        key, salt = scheme.sa_key(generation, src, dst)
        reply = {"spi": scheme.spi(generation, src), "key": key.hex(), "salt": salt.hex()}
        print(json.dumps(reply), flush=True)


def main():
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command not in ("check", "write", "serve"):
        sys.exit(__doc__)
    self_test()
    if command == "serve":
        serve()
    else:
        check(write=command == "write")


main()
