//! What operators are told of clusters in every state: each row of `testdata/cases.json` edits the good cluster of
//! `testdata/good.json`, and names the exit status of `status` and lines of its screen.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use secureoverlay_kubectl_core::{
    Exit,
    assess::{Verdict, assess},
    history, nodes,
    removal::Removal,
    screen,
    snapshot::{Cleaned, Encryption, Fetched, Read, Snapshot},
    table::Style,
    version::Versions,
};
use serde::Deserialize;
use serde_json::{Value, from_str, json, to_value};

#[derive(Deserialize)]
struct Case {
    case: String,
    edits: Vec<(String, Value)>,
    exit: u8,
    lines: Vec<String>,
}

fn cases() -> Vec<Case> {
    from_str(include_str!("../testdata/cases.json")).unwrap()
}

fn good() -> Value {
    from_str(include_str!("../testdata/good.json")).unwrap()
}

/// Sets a value, and adds the last part of its path where that is not there.
fn edit(cluster: &mut Value, pointer: &str, value: &Value) {
    if let Some(found) = cluster.pointer_mut(pointer) {
        found.clone_from(value);
        return;
    }
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = cluster.pointer_mut(parent).unwrap_or_else(|| panic!("nothing at {pointer}"));
    parent.as_object_mut().unwrap().insert(field.replace("~1", "/"), value.clone());
}

/// A text in the place of a list is why it could not be read.
fn list<T: Read>(cluster: &Value, field: &str) -> Fetched<Vec<T>> {
    match &cluster[field] {
        Value::String(error) => Err(error.clone()),
        list => Ok(list.as_array().unwrap().iter().map(|it| T::read(Cleaned::new(it.clone()))).collect()),
    }
}

fn snapshot(cluster: &Value) -> Snapshot {
    Snapshot {
        now: cluster["now"].as_str().unwrap().parse().unwrap(),
        encryption: match &cluster["encryption"] {
            Value::String(error) => Err(error.clone()),
            Value::Null => Ok(None),
            object => Ok(Some(Encryption::read(Cleaned::new(object.clone())))),
        },
        rotations: list(cluster, "rotations"),
        reports: list(cluster, "reports"),
        nodes: list(cluster, "nodes"),
        agents: list(cluster, "agents"),
        managers: list(cluster, "managers"),
    }
}

fn edited(edits: &[(String, Value)]) -> Snapshot {
    let mut cluster = good();
    for (pointer, value) in edits {
        edit(&mut cluster, pointer, value);
    }
    snapshot(&cluster)
}

fn with(edits: Value) -> Snapshot {
    edited(&serde_json::from_value::<Vec<(String, Value)>>(edits).unwrap())
}

#[test]
fn status_says_what_each_cluster_is_in() {
    for Case { case, edits, exit, lines } in cases() {
        let snapshot = edited(&edits);
        let assessment = assess(&snapshot);
        let screen = screen::screen(&snapshot, &assessment, Style::default());
        assert_eq!(assessment.exit().code(), exit, "{case}:\n{screen}");
        for line in &lines {
            assert!(screen.contains(line), "{case}: {line:?} is missing:\n{screen}");
        }
        let first = screen.lines().next().unwrap();
        assert_eq!(exit == 0, first.starts_with("ENCRYPTED: "), "{case}: only a good cluster is called so");
        assert_eq!(
            screen.lines().filter(|line| line.starts_with("ENCRYPTED")).count(),
            usize::from(exit == 0)
        );
        assert_eq!(
            screen.contains("\nNext\n"),
            exit != 0,
            "{case}: a command comes next where one is needed"
        );
        let document = to_value(screen::document(&snapshot, &assessment)).unwrap();
        assert_eq!(document["exitCode"], exit, "{case}");
        let painted = screen::screen(&snapshot, &assessment, Style { colour: true });
        let plain = ["\x1b[1;32m", "\x1b[1;31m", "\x1b[1;33m", "\x1b[1m", "\x1b[0m"]
            .iter()
            .fold(painted, |text, code| text.replace(code, ""));
        assert_eq!(plain, screen, "{case}: colours are all that is painted");
        let rows = nodes::rows(&snapshot, &assessment, false).0;
        for text in [screen, nodes::text(&rows, true), document.to_string(), Removal::of(&snapshot).text()] {
            let control = |c: &char| c.is_control() && *c != '\n';
            assert_eq!(text.chars().find(control), None, "{case}: {text:?}");
        }
    }
}

#[test]
fn nothing_that_is_missing_leaves_a_cluster_encrypted() {
    // Each part of the good cluster that is taken away, one after the other.
    for gone in [
        "/encryption",
        "/encryption/status",
        "/encryption/status/conditions",
        "/encryption/status/observedGeneration",
        "/reports/0/status",
        "/reports/0/status/acknowledgement",
        "/reports/0/status/state",
        "/reports/0/status/conditions",
        "/agents/0/status",
        "/managers/0/status",
        "/nodes/0/status",
        "/nodes/0/metadata/uid",
        "/agents/0/spec",
    ] {
        let snapshot = with(json!([[gone, null]]));
        assert_eq!(assess(&snapshot).verdict, Verdict::Unknown, "{gone}");
    }
    for list in ["/reports", "/agents", "/managers", "/nodes"] {
        assert_eq!(assess(&with(json!([[list, []]]))).verdict, Verdict::Unknown, "{list}");
    }
}

#[test]
fn nodes_are_rows_with_their_problems() {
    let snapshot = snapshot(&good());
    let assessment = assess(&snapshot);
    let (rows, exit) = nodes::rows(&snapshot, &assessment, false);
    assert_eq!((rows.len(), exit), (3, Exit::Good));
    let text = nodes::text(&rows, false);
    let expected = "\
NODE    STATE       KEY          UNPROVEN   MTU    AGENT   VERSION   PROBLEM
node1   Enforcing   1764471600   0          1452   Ready   0.1.0     -
";
    assert!(text.starts_with(expected), "{text}");
    assert!(to_value(&rows).unwrap()[0]["status"]["acknowledgement"].is_null(), "that is for the manager");

    let problems = |edits: Value| {
        let snapshot = with(edits);
        let assessment = assess(&snapshot);
        let (rows, exit) = nodes::rows(&snapshot, &assessment, true);
        (nodes::text(&rows, true), rows.len(), exit.code())
    };
    let (text, count, exit) = problems(json!([["/agents/1/status/conditions/0/status", "False"]]));
    assert!(count == 1 && exit == 2 && text.contains("AgentNotReady"), "{text}");
    assert_eq!(problems(json!([])).2, 0);
    assert_eq!(problems(json!([["/agents", "you may not list pods"]])).2, 2);
    assert_eq!(problems(json!([["/nodes", "you may not list nodes"]])).2, 2);
    assert_eq!(problems(json!([["/reports/1/status/state", "Waiting"]])).2, 1);
}

#[test]
fn thousands_of_nodes_with_one_fault_are_one_line() {
    let mut cluster = good();
    let nodes: Vec<Value> = (0..5000)
        .map(|number| {
            json!({
                "metadata": {"name": format!("node{number:04}"), "uid": "u"},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            })
        })
        .collect();
    cluster["nodes"] = json!(nodes);
    cluster["agents"] = json!([]);
    let snapshot = snapshot(&cluster);
    let screen = screen::screen(&snapshot, &assess(&snapshot), Style::default());
    assert!(screen.lines().count() < 25, "{screen}");
    assert!(
        screen
            .contains("node0000, node0001, node0002, node0003, node0004, node0005 and 4,994 more: no agent"),
        "{screen}"
    );
}

#[test]
fn history_is_newest_first_and_a_failed_last_one_is_a_finding() {
    let mut cluster = good();
    let failed = json!({
        "metadata": {"name": "rotate-b", "creationTimestamp": "2026-11-30T05:00:00Z"},
        "status": {"generation": 9, "cause": "Request", "conditions": [
            {"type": "Complete", "status": "False", "reason": "NotProven", "lastTransitionTime": "2026-11-30T05:00:00Z"},
            {"type": "Failed", "status": "True", "reason": "NotProven", "message": "dropped", "lastTransitionTime": "2026-11-30T05:00:00Z"},
        ]},
    });
    let waiting = json!({"metadata": {"name": "rotate-c", "creationTimestamp": "2026-11-30T06:00:00Z"}});
    cluster["rotations"].as_array_mut().unwrap().extend([failed, waiting]);
    let all = snapshot(&cluster);
    let (table, exit) = history::history(all.rotations.as_ref().unwrap(), all.now, true);
    let expected = "\
NAME              KEY          CAUSE      SUITE        RESULT     AGE     TOOK   DETAIL
rotate-c          -            -          -            Waiting    12m     -      waiting for the manager
rotate-b          9            Request    -            Failed     1h12m   -      dropped
scheduled-x7k2p   1764471600   Schedule   aes128gcm8   Complete   3h12m   1m5s   generation 1764471600 is in use, and the one before it is gone
";
    assert_eq!((table.as_str(), exit), (expected, Exit::Finding));
    let all = snapshot(&good());
    assert_eq!(history::history(all.rotations.as_ref().unwrap(), all.now, false).1, Exit::Good);
}

#[test]
fn removal_names_the_nodes_that_it_would_strand() {
    for (edits, exit, lines) in [
        (json!([]), Exit::Good, vec!["the agents of all 3 nodes are Ready"]),
        (
            json!([["/agents/1/status/conditions/0/status", "False"]]),
            Exit::Finding,
            vec!["would strand 1 of 3 nodes", "node2   its agent is not Ready   it enforces"],
        ),
        (
            json!([["/nodes/2/status/conditions/0/status", "Unknown"]]),
            Exit::Finding,
            vec!["node3   the Node is not Ready"],
        ),
        (json!([["/agents", []]]), Exit::Finding, vec!["would strand 3 of 3 nodes", "no agent runs"]),
        (
            json!([["/agents/0/metadata/deletionTimestamp", "2026-11-30T06:12:00Z"]]),
            Exit::Finding,
            vec!["is being replaced"],
        ),
        (
            json!([["/agents", "you may not list pods"]]),
            Exit::Unknown,
            vec!["could not tell: you may not list pods"],
        ),
        (json!([["/nodes", []]]), Exit::Unknown, vec!["there are no Nodes"]),
        (
            json!([["/encryption/spec/deletionPolicy", "KeepKernelState"]]),
            Exit::Finding,
            vec!["deletionPolicy is KeepKernelState: a deletion takes nothing out of the kernels of 3 nodes"],
        ),
    ] {
        let removal = Removal::of(&with(edits));
        let text = removal.text();
        assert_eq!(removal.exit(), exit, "{text}");
        for line in lines {
            assert!(text.contains(line), "{line:?}: {text}");
        }
    }
}

#[test]
fn versions_that_differ_are_a_finding() {
    for (client, edits, exit) in [
        ("0.1.0", json!([]), Exit::Good),
        ("0.2.0", json!([]), Exit::Finding),
        ("0.1.0", json!([["/reports/1/status/version", "0.0.9"]]), Exit::Finding),
        ("0.1.0", json!([["/managers/0/spec/containers/0/image", "r:5000/m@sha256:0123"]]), Exit::Finding),
        ("0.1.0", json!([["/managers", "you may not list pods"]]), Exit::Unknown),
        ("0.1.0", json!([["/reports", []]]), Exit::Unknown),
    ] {
        let versions = Versions::of(&with(edits), client);
        assert_eq!(versions.exit(), exit, "{}", versions.text());
    }
    let text = Versions::of(&with(json!([["/reports/1/status/version", "0.0.9"]])), "0.1.0").text();
    assert!(text.contains("agents    0.0.9 (1), 0.1.0 (2)\n"), "{text}");
}
