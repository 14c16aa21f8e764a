#!/usr/bin/python3
"""The Helm chart and the kustomizations make the objects of the plain manifests, and values do what they say.

    compare.py HELM KUBECTL
"""

import copy
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
CHART = MANIFESTS / "helm/secureoverlay"
VALUES = ROOT / "tests/packages/values.yaml"
KEEP = {"helm.sh/resource-policy": "keep"}

problems = []


def load(text):
    return [document for document in yaml.safe_load_all(text) if document]


def files(*names):
    return [document for name in names for document in load((MANIFESTS / name).read_text())]


def identity(document):
    metadata = document["metadata"]
    return document["apiVersion"], document["kind"], metadata.get("namespace", ""), metadata["name"]


def differences(got, want, path=""):
    """Where two values differ. Numbers are equal as numbers: 0 and 0.0."""
    if isinstance(got, dict) and isinstance(want, dict):
        for key in sorted(got.keys() | want.keys()):
            if key not in got or key not in want:
                yield f"{path}.{key} is only in {'the one asked for' if key in want else 'what was made'}"
            else:
                yield from differences(got[key], want[key], f"{path}.{key}")
    elif isinstance(got, list) and isinstance(want, list) and len(got) == len(want):
        for number, pair in enumerate(zip(got, want)):
            yield from differences(*pair, f"{path}[{number}]")
    elif got != want or isinstance(got, bool) != isinstance(want, bool):
        yield f"{path} is {got!r}, and should be {want!r}"


def compare(what, got, want):
    by_name = {identity(document): document for document in got}
    wanted = {identity(document): document for document in want}
    if len(by_name) != len(got):
        problems.append(f"{what}: an object is there twice")
    for name in sorted(by_name.keys() | wanted.keys()):
        if name not in by_name or name not in wanted:
            problems.append(f"{what}: {' '.join(name)} is {'missing' if name in wanted else 'one too many'}")
            continue
        problems.extend(
            f"{what}: {name[1]} {name[3]}: {difference}" for difference in differences(by_name[name], wanted[name])
        )


class Helm:
    def __init__(self, program, directory):
        self.program = program
        self.environment = {**os.environ, **{f"HELM_{kind}_HOME": directory for kind in ("CACHE", "CONFIG", "DATA")}}

    def run(self, *arguments, stdin=None):
        command = [self.program, *map(str, arguments)]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, env=self.environment
        )

    def template(self, *arguments, values=None, chart=CHART, namespace="kube-system"):
        more = [] if values is None else ["--values=-"]
        stdin = None if values is None else yaml.safe_dump(values)
        return self.run("template", "x", chart, "--namespace", namespace, *more, *arguments, stdin=stdin)

    def objects(self, what, **options):
        ran = self.template(**options)
        if ran.returncode != 0:
            problems.append(f"{what}: {ran.stderr.strip()}")
        return load(ran.stdout)


def kept(documents):
    """What the chart should make of these: definitions that no uninstall deletes, the rest as it is."""
    documents = copy.deepcopy(documents)
    for document in documents:
        if document["kind"] == "CustomResourceDefinition":
            document["metadata"]["annotations"] = KEEP
    return documents


def at(value, path):
    """The part of a value at a path such as `spec.0.name`."""
    for step in path.split("."):
        try:
            value = value[int(step) if isinstance(value, list) else step]
        except (IndexError, KeyError, TypeError):
            return None
    return value


def leaves(values, path=()):
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in ("nodeSelector", "labels"):
            yield from leaves(value, (*path, key))
        else:
            yield ".".join((*path, key))


def nested(path, value):
    for step in reversed(path.split(".")):
        value = {step: value}
    return value


def refused(what, ran, word):
    error = ran.stderr.rpartition("Error: ")[2].strip()
    if ran.returncode == 0:
        problems.append(f"{what} is not refused")
    elif word not in error:
        problems.append(f"{what} is refused, but not for {word!r}: {error}")


def check_chart(helm, directory):
    plain = files("ucp-secureoverlay.yaml")
    compare("chart", helm.objects("chart"), kept(plain))
    secret = [document for document in plain if document["kind"] == "Secret"]
    if len(secret) != 1 or secret[0].keys() & {"data", "stringData"}:
        problems.append("the manifest's Secret holds data, which applying it would write over the keys")
    if (lint := helm.run("lint", "--strict", "--namespace", "kube-system", CHART)).returncode != 0:
        problems.append(f"helm lint: {lint.stdout}{lint.stderr}")
    packaged = helm.run("package", CHART, "--destination", directory)
    archives = list(Path(directory).glob("*.tgz"))
    if packaged.returncode != 0 or len(archives) != 1:
        problems.append(f"helm package: {packaged.stderr}")
    else:
        compare("package", helm.objects("package", chart=archives[0]), kept(plain))
    linkless = Path(directory) / "linkless"
    shutil.copytree(CHART, linkless, ignore=lambda parent, names: [n for n in names if (Path(parent) / n).is_symlink()])
    refused("a copy of the chart without symbolic links", helm.template(chart=linkless), "symbolic link")
    refused("another namespace", helm.template(namespace="default"), "--namespace kube-system")


def check_values(helm):
    table = yaml.safe_load(VALUES.read_text())
    known = set(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    for path in sorted(known ^ table["effects"].keys()):
        problems.append(f"{path} is either no value of the chart, or tests/packages/values.yaml does not say what it does")
    plain = helm.objects("defaults")
    with ThreadPoolExecutor() as pool:
        effects = [pool.submit(effect, helm, plain, *item) for item in table["effects"].items()]
        effects += [pool.submit(wrong, helm, *row) for row in table["refused"]]
        for path, version in table["too_old"]:
            ran = helm.template("--kube-version", version, values=nested(path, True))
            refused(f"{path} on {version}", ran, "or later")
        for done in effects:
            done.result()


def wrong(helm, path, value, word):
    refused(f"{path} = {value!r}", helm.template(values=nested(path, value)), word)


def effect(helm, plain, path, case):
    """A value changes what it should."""
    values = nested(path, case["value"])
    for more in case.get("with", []):
        values = merge(values, nested(*more))
    kind, name = case["object"].split("/")

    def seen(objects):
        found = [it for it in objects if (it["kind"], it["metadata"]["name"]) == (kind, name)]
        return at(found[0], case["at"]) if found else None

    got = seen(helm.objects(path, values=values))
    problems.extend(f"{path}: {case['at']}{difference}" for difference in differences(got, case["want"]))
    if seen(plain) == case["want"]:
        problems.append(f"{path}: the defaults have that too, so it shows nothing")


def merge(one, other):
    for key, value in other.items():
        one[key] = merge(one[key], value) if isinstance(one.get(key), dict) and isinstance(value, dict) else value
    return one


def check_kustomize(helm, kubectl):
    def built(directory):
        ran = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            problems.append(f"kustomize {directory}: {ran.stderr}")
        return load(ran.stdout)

    plain, base = files("ucp-secureoverlay.yaml"), built(MANIFESTS)
    compare("base", base, plain)
    if [identity(document) for document in base] != [identity(document) for document in plain]:
        problems.append("base: the order, in which they are deleted, is another")
    mke = files("mke-original.yaml")
    for document in mke:
        document["apiVersion"] = document["apiVersion"].replace("rbac.authorization.k8s.io/v1beta1", "rbac.authorization.k8s.io/v1")
    compare("mke", built(MANIFESTS / "mke"), mke)
    # Everything optional, by both: two ways to one result.
    everything = yaml.safe_load(VALUES.read_text())["everything"]
    chart = helm.objects("everything", values=everything)
    for document in chart:
        if document["kind"] == "CustomResourceDefinition":
            del document["metadata"]["annotations"]
    compare("all components", built(ROOT / "tests/packages/kustomize"), chart)
    optional = files("startup-taint.yaml", "admission-policy.yaml", "flowschema.yaml")
    compare("optional files", [document for document in chart if identity(document) in map(identity, optional)], optional)


def main(helm, kubectl):
    with tempfile.TemporaryDirectory() as directory:
        helm = Helm(helm, directory)
        check_chart(helm, directory)
        check_values(helm)
        check_kustomize(helm, kubectl)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"chart and kustomizations: {len(files('ucp-secureoverlay.yaml'))} objects compared, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
