#!/usr/bin/python3
"""Alerts and dashboard: each alert fires when it should and is quiet otherwise, has its section in the docs, and names
metrics that the programs register.

    alerts.py PROMTOOL
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "manifests/prometheus/rules.yaml"
DASHBOARD = ROOT / "manifests/prometheus/dashboard.json"
DOCS = ROOT / "docs/operations/alerts.md"
METRICS = ROOT / "docs/operations/metrics.md"
CASES = ROOT / "tests/packages/alerts.yaml"
SUFFIXES = {"Gauge": [""], "Counter": ["_total"], "Histogram": ["_bucket", "_sum", "_count"], "Info": ["_info"]}


def source_of(program, name):
    """A source without its tests, wherever it is."""
    (file,) = (ROOT / program / "src").rglob(name)
    return file.read_text().split("\nmod tests {")[0]


def registered():
    """The names under which the sources register metrics."""
    names = set()
    for program in ("agent", "manager"):
        source = source_of(program, "metrics.rs")
        types = dict(re.findall(r"^    (?:pub )?(\w+): .*?\b(Gauge|Counter|Histogram)\b", source, re.M))
        types["duration"] = "Histogram"
        calls = r'(?:register|register_with_unit|gauge)\(\s*"(\w+)",\s*"[^"]*",\s*(?:Unit::(\w+),\s*)?&?(?:(?:self|metrics)\.)?(\w+)'
        found = [(name, unit, types.get(field, field)) for name, unit, field in re.findall(calls, source)]
        found += [(name, "", "Counter") for name in re.findall(r'encode_descriptor\("(\w+)"', source)]
        if program == "agent":
            ages = re.findall(r'\(\s*"(\w+)",\s*"[A-Z]', source_of(program, "ages.rs"))
            found += [(name, "Seconds", "Gauge") for name in ages]
        for name, unit, kind in found:
            unit = f"_{unit.lower()}" if unit else ""
            names |= {f"secureoverlay_{program}_{name}{unit}{suffix}" for suffix in SUFFIXES[kind]}
    return names


def check_names(complain):
    names = registered()
    if len(names) < 50:
        complain(f"only {len(names)} metrics found in the sources: how they are registered has changed")
    for file in (RULES, DASHBOARD, CASES, DOCS, METRICS):
        for name in sorted(set(re.findall(r"secureoverlay_(?:agent|manager)_\w+", file.read_text())) - names):
            complain(f"{file.relative_to(ROOT)}: no program registers {name}")
    documented = dict(re.findall(r"^## The (agent|manager)'s: (.*?)(?=^## )", METRICS.read_text(), re.M | re.S))
    for name in sorted(names):
        _, program, short = name.split("_", 2)
        if f"`{re.sub('_(bucket|sum|count)$', '', short)}`" not in documented[program]:
            complain(f"docs/operations/metrics.md lacks {name}")


def check_texts(rules, cases, complain):
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", DOCS.read_text(), re.M | re.S))
    for rule in rules:
        name, notes = rule["alert"], rule["annotations"]
        if rule["labels"].get("severity") not in ("critical", "warning", "info"):
            complain(f"{name} has no severity")
        if notes["runbook"] != f"docs/operations/alerts.md#{name.lower()}" or not notes["summary"].endswith("."):
            complain(f"{name}: summary or runbook is wrong")
        for part in ("**Means:**", "**See:**", "**Do:**"):
            if part not in sections.get(name, ""):
                complain(f"docs/operations/alerts.md has no {part} for {name}")
        if not any(case["alert"] == name for case in cases):
            complain(f"{name} has no test in tests/packages/alerts.yaml")
    for name in sections.keys() - {rule["alert"] for rule in rules}:
        complain(f"docs/operations/alerts.md has a section of {name}, which is no alert")


def unit_test(case, healthy):
    """promtool's test: what fires at which time, beside nothing else."""
    series = {**healthy, **case["series"]}
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'

    def at(time, alerts):
        samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts]
        return {"expr": firing, "eval_time": time, "exp_samples": samples}

    return {
        "name": case["alert"],
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [at(case["fires"], [case["alert"], *case.get("also", [])])]
        + [at(time, []) for time in case["quiet"]],
    }


def promtool(program, arguments, complain):
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        complain(f"promtool {' '.join(arguments[:2])}: {ran.stdout}{ran.stderr}")


def main(program):
    problems = []
    spec = yaml.safe_load(RULES.read_text())["spec"]
    rules = [rule for group in spec["groups"] for rule in group["rules"]]
    tests = yaml.safe_load(CASES.read_text())
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    check_names(problems.append)
    check_texts(rules, tests["cases"], problems.append)
    for case in tests["cases"]:
        if not case["quiet"] or not case["series"].keys() <= tests["healthy"].keys():
            problems.append(f"{case['alert']}: a test needs a quiet time, and changes series of the healthy cluster")
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        # A dashboard's queries are checked as if they were rules.
        recorded = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
        dashboard = {"groups": [{"name": "dashboard", "rules": recorded}]}
        files = {
            "rules.yaml": spec,
            "dashboard.yaml": dashboard,
            "test.yaml": {
                "rule_files": ["rules.yaml"],
                "evaluation_interval": "1m",
                "tests": [unit_test(case, tests["healthy"]) for case in tests["cases"]],
            },
        }
        for name, content in files.items():
            (directory / name).write_text(yaml.safe_dump(content, sort_keys=False))
        promtool(program, ["check", "rules", directory / "rules.yaml", directory / "dashboard.yaml"], problems.append)
        promtool(program, ["test", "rules", directory / "test.yaml"], problems.append)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(rules)} alerts, {len(tests['cases'])} tests of them, {len(queries)} queries of the dashboard")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
