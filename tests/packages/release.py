#!/usr/bin/python3
"""What a release consists of: images as OCI archives for amd64, the plugin, the manifest, an SBOM (SPDX) and checksums.

    release.py build PROGRAMS DIRECTORY    from static programs, into an empty or absent directory
    release.py verify DIRECTORY            what lies there is complete, fits together, and runs
    release.py check PROGRAMS              builds twice, compares, verifies, and notices what was changed

Two builds from the same programs and commit are the same bytes.
"""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKSPACE = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
VERSION = WORKSPACE["version"]
TARGET = "x86_64-unknown-linux-gnu"
CONTAINERFILE = (ROOT / "Containerfile").read_text()
# Image: the packages of its programs.
IMAGES = {
    "ucp-secureoverlay-agent": ["secureoverlay-agent"],
    "ucp-secureoverlay-mgr": ["secureoverlay-manager", "secureoverlay-kubectl"],
}
PLUGIN = "kubectl-secureoverlay"
SBOM = f"secureoverlay-{VERSION}.spdx.json"
SUMS = "SHA256SUMS"
MANIFEST = "ucp-secureoverlay.yaml"
OCI = "application/vnd.oci.image"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def run(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def commit_time():
    """Seconds since 1970: the same commit gives the same release."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given) if given else int(run("git", "log", "-1", "--format=%ct"))


def stamp():
    return datetime.fromtimestamp(commit_time(), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def stage(image):
    """What the Containerfile says of an image: its files, labels, user and entry point."""
    name = {"ucp-secureoverlay-mgr": "manager", "ucp-secureoverlay-agent": "agent"}[image]
    text = re.search(rf"^FROM scratch AS {name}$(.*?)(?=^FROM|\Z)", CONTAINERFILE, re.M | re.S).group(1)
    files = re.findall(r"^COPY --from=build /out/\S+ /(\S+)$", text, re.M)
    user = re.search(r"^USER (\S+)$", text, re.M)
    return {
        "files": files,
        "labels": dict(re.findall(r'(org\.opencontainers\.\S+?)="([^"]*)"', text)),
        "user": user.group(1) if user else "",
        "entrypoint": json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.M).group(1)),
    }


def tar(files):
    """A tar in which nothing depends on when and where it was made: names and (data, mode)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (data, mode) in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), mode, commit_time()
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def image(name, programs):
    """An OCI image layout (version 1.0.0) of one image, as a tar."""
    facts = stage(name)
    layer = tar([(file, ((programs / file).read_bytes(), 0o755)) for file in facts["files"]])
    packed = gzip.compress(layer, mtime=0)
    config = {
        "created": stamp(),
        "architecture": "amd64",
        "os": "linux",
        "config": {"User": facts["user"], "Entrypoint": facts["entrypoint"], "WorkingDir": "/", "Labels": facts["labels"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer)}"]},
        "history": [{"created": stamp(), "created_by": "tests/packages/release.py"}],
    }
    blobs = {}

    def blob(kind, data):
        blobs[f"blobs/sha256/{sha256(data)}"] = data
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{sha256(data)}", "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": blob("config.v1+json", json.dumps(config, sort_keys=True).encode()),
        "layers": [blob("layer.v1.tar+gzip", packed)],
    }
    entry = blob("manifest.v1+json", json.dumps(manifest, sort_keys=True).encode())
    entry["platform"] = {"architecture": "amd64", "os": "linux"}
    reference = f"docker.io/secureoverlay/{name}:{VERSION}"
    entry["annotations"] = {"org.opencontainers.image.ref.name": VERSION, "io.containerd.image.name": reference}
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [entry]}
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index, sort_keys=True).encode()}
    return tar([(file, (data, 0o644)) for file, data in {**files, **dict(sorted(blobs.items()))}.items()])


def linked(package):
    """Names and versions of what is linked into a package's program, by cargo."""
    tree = run("cargo", "tree", "--locked", "--package", package, "--edges", "normal", "--target", TARGET,
               "--prefix", "none", "--format", "{p}")
    return sorted({tuple(line.split()[:2]) for line in tree.splitlines() if line})


def locked():
    """The checksum of each crate that comes from a registry, by name and version."""
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    return {(it["name"], f"v{it['version']}"): it["checksum"] for it in lock if "checksum" in it}


def sbom():
    """SPDX 2.3: each program, and every crate that is linked into it."""
    metadata = json.loads(run("cargo", "metadata", "--locked", "--filter-platform", TARGET, "--format-version=1"))
    licenses = {(it["name"], f"v{it['version']}"): it["license"] for it in metadata["packages"]}
    sums, packages, relations = locked(), {}, []

    def identifier(crate):
        return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", "-".join(crate))

    def add(crate):
        name, version = crate[0], crate[1].removeprefix("v")
        license_ = (licenses.get(crate) or "NOASSERTION").replace("/", " OR ")
        package = {
            "SPDXID": identifier(crate),
            "name": name,
            "versionInfo": version,
            "downloadLocation": f"https://crates.io/api/v1/crates/{name}/{version}/download" if crate in sums else "NOASSERTION",
            "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": license_,
            "copyrightText": "NOASSERTION",
        }
        if crate in sums:
            package["checksums"] = [{"algorithm": "SHA256", "checksumValue": sums[crate]}]
            purl = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": f"pkg:cargo/{name}@{version}"}
            package["externalRefs"] = [purl]
        packages[crate] = package

    for program in sorted(sum(IMAGES.values(), [])):
        top = (program, f"v{VERSION}")
        relations.append(("SPDXRef-DOCUMENT", "DESCRIBES", identifier(top)))
        for crate in linked(program):
            add(crate)
            if crate != top:
                relations.append((identifier(top), "DEPENDS_ON", identifier(crate)))
    content = json.dumps([sorted(packages), relations])
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"secureoverlay-{VERSION}",
        "documentNamespace": f"https://secureoverlay.io/spdx/{VERSION}/{sha256(content.encode())}",
        "creationInfo": {"created": stamp(), "creators": ["Tool: secureoverlay-release"]},
        "packages": [packages[crate] for crate in sorted(packages)],
        "relationships": [
            {"spdxElementId": of, "relationshipType": kind, "relatedSpdxElement": to} for of, kind, to in relations
        ],
    }


def build(programs, directory):
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        sys.exit(f"{directory} is not empty: remove what lies there")
    for name in IMAGES:
        (directory / f"{name}-{VERSION}-amd64.oci.tar").write_bytes(image(name, programs))
    plugin = directory / f"{PLUGIN}-{VERSION}-linux-amd64"
    shutil.copyfile(programs / PLUGIN, plugin)
    plugin.chmod(0o755)
    shutil.copyfile(ROOT / "manifests" / MANIFEST, directory / MANIFEST)
    (directory / SBOM).write_text(json.dumps(sbom(), indent=1, sort_keys=True) + "\n")
    names = sorted(file.name for file in directory.iterdir())
    lines = [f"{sha256((directory / name).read_bytes())}  {name}\n" for name in names]
    (directory / SUMS).write_text("".join(lines))


def is_static(program):
    """An ELF program for x86-64 that names no loader (no segment PT_INTERP)."""
    if program[:6] != b"\x7fELF\x02\x01" or program[18:20] != b"\x3e\x00":
        return False
    start, size, count = (int.from_bytes(program[at : at + length], "little") for at, length in ((32, 8), (54, 2), (56, 2)))
    kinds = [int.from_bytes(program[start + size * n :][:4], "little") for n in range(count)]
    return count > 0 and 3 not in kinds


def verify_image(name, data, complain):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    if json.loads(files["oci-layout"]) != {"imageLayoutVersion": "1.0.0"}:
        complain(f"{name}: not an OCI layout of version 1.0.0")
    used = set()

    def blob(entry):
        path = "blobs/" + entry["digest"].replace(":", "/")
        found = files.get(path, b"")
        used.add(path)
        if (f"sha256:{sha256(found)}", len(found)) != (entry["digest"], entry["size"]):
            complain(f"{name}: {path} is missing, or another than the one that is named")
        return found

    (entry,) = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(blob(entry))
    config = json.loads(blob(manifest["config"]))
    (layer,) = [gzip.decompress(blob(entry)) for entry in manifest["layers"]]
    if used != {path for path in files if path.startswith("blobs/")}:
        complain(f"{name}: blobs that nothing names")
    if config["rootfs"]["diff_ids"] != [f"sha256:{sha256(layer)}"] or config["architecture"] != "amd64":
        complain(f"{name}: the configuration is of another layer or machine")
    facts = stage(name)
    if (config["config"]["Entrypoint"], config["config"]["User"]) != (facts["entrypoint"], facts["user"]):
        complain(f"{name}: entry point or user are not the Containerfile's")
    if config["config"]["Labels"].get("org.opencontainers.image.version") != VERSION:
        complain(f"{name}: the Containerfile labels another version than {VERSION}")
    programs = {}
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        for member in archive:
            programs[member.name] = archive.extractfile(member).read()
            if member.mode != 0o755 or (member.uid, member.gid) != (0, 0):
                complain(f"{name}: {member.name} has another mode or owner")
    if sorted(programs) != sorted(facts["files"]):
        complain(f"{name} holds {sorted(programs)}, the Containerfile {facts['files']}")
    return programs


def verify_program(name, data, complain):
    if not is_static(data):
        return complain(f"{name} is no static program for amd64")
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / name
        program.write_bytes(data)
        program.chmod(0o755)
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.split()
    if said[-1:] != [VERSION]:
        complain(f"{name} says {said}, not {VERSION}")


def verify_sbom(text, complain):
    document, sums = json.loads(text), locked()
    for field in ("spdxVersion", "dataLicense", "SPDXID", "name", "documentNamespace", "creationInfo"):
        if not document.get(field):
            complain(f"{SBOM} has no {field}")
    packages = {it["SPDXID"]: it for it in document["packages"]}
    if len(packages) != len(document["packages"]):
        complain(f"{SBOM}: two packages have one identifier")
    relations = document["relationships"]
    ends = {it["relatedSpdxElement"] for it in relations}
    if ends != set(packages):
        complain(f"{SBOM}: packages and relationships do not fit: {sorted(ends ^ set(packages))[:5]}")
    described = {packages[it["relatedSpdxElement"]]["name"] for it in relations if it["relationshipType"] == "DESCRIBES"}
    if described != set(sum(IMAGES.values(), [])):
        complain(f"{SBOM} describes {sorted(described)}")
    for package in packages.values():
        name, crate = package["name"], (package["name"], f"v{package['versionInfo']}")
        checksums = [it["checksumValue"] for it in package.get("checksums", [])]
        if checksums != ([sums[crate]] if crate in sums else []):
            complain(f"{SBOM}: {name} has another checksum than Cargo.lock")
        if crate not in sums and not name.startswith("secureoverlay-"):
            complain(f"{SBOM}: {name} is in no registry and not of this workspace")
        if package["licenseDeclared"] == "NOASSERTION":
            complain(f"{SBOM}: {name} declares no license")
    for name in ("kube", "rustls", "x25519-dalek", "netlink-packet-xfrm"):
        if not any(package["name"] == name for package in packages.values()):
            complain(f"{SBOM} lacks {name}")


def verify(directory):
    """What is wrong with a release; nothing, if all is well."""
    problems = []
    listed = dict(reversed(line.split("  ", 1)) for line in (directory / SUMS).read_text().splitlines())
    there = {file.name for file in directory.iterdir()} - {SUMS}
    if there != set(listed):
        problems.append(f"{SUMS} and the directory differ: {sorted(there ^ set(listed))}")
    for name in sorted(there & set(listed)):
        if sha256((directory / name).read_bytes()) != listed[name]:
            problems.append(f"{name} has another checksum")
    if problems:
        return problems
    for name in IMAGES:
        data = (directory / f"{name}-{VERSION}-amd64.oci.tar").read_bytes()
        for program, content in verify_image(name, data, problems.append).items():
            verify_program(program, content, problems.append)
            plugin = directory / f"{PLUGIN}-{VERSION}-linux-amd64"
            if program == PLUGIN and content != plugin.read_bytes():
                problems.append("the plugin is another one than the image's")
    if f":{VERSION}" not in (directory / MANIFEST).read_text():
        problems.append(f"{MANIFEST} names no image of version {VERSION}")
    verify_sbom((directory / SBOM).read_text(), problems.append)
    return problems


def check(programs):
    with tempfile.TemporaryDirectory() as temporary:
        first, second = Path(temporary) / "first", Path(temporary) / "second"
        build(programs, first)
        build(programs, second)
        problems = verify(first)
        if (first / SUMS).read_text() != (second / SUMS).read_text():
            problems.append("two builds from the same programs differ")
        with (second / MANIFEST).open("a") as manifest:
            manifest.write("#")
        if not verify(second):
            problems.append("a changed file is not noticed")
    return problems


def main(command, *paths):
    paths = [Path(path) for path in paths]
    if command == "build" and len(paths) == 2:
        build(*paths)
        problems = verify(paths[1])
        print("".join(f"{file.stat().st_size:>12}  {file}\n" for file in sorted(paths[1].iterdir())), end="")
    elif command in ("verify", "check") and len(paths) == 1:
        problems = {"verify": verify, "check": check}[command](*paths)
    else:
        sys.exit(__doc__)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"release {VERSION}: {'ok' if not problems else 'not ok'}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(*sys.argv[1:] or [""])
