//! Compares what is written down of the transitions with the code. With `UPDATE_TRANSITIONS=1` in the environment it is
//! written down anew.

use std::{fs, path::PathBuf};

use secureoverlay_keyring::keyring::KeyRing;

use super::{Line, SECTIONS, Section, VARIABLES, arrows, rings, state};

const BEGIN: &str = "<!-- transitions: begin -->";
const END: &str = "<!-- transitions: end -->";
const SEPARATOR: &str = "----";

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Fails with every line that differs, or writes what is `found`.
fn compare(path: &PathBuf, written: &str, found: &str) {
    if written == found {
        return;
    }
    if std::env::var_os("UPDATE_TRANSITIONS").is_some() {
        return fs::write(path, found).unwrap();
    }
    let (before, after): (Vec<&str>, Vec<&str>) = (written.lines().collect(), found.lines().collect());
    panic!(
        "{} is not what the code does (run this test with UPDATE_TRANSITIONS=1, and read the difference):\n{}",
        path.display(),
        difference(&before, &after).join("\n")
    );
}

/// The lines that only one of them has, in order.
fn difference(before: &[&str], after: &[&str]) -> Vec<String> {
    let (mut at, mut changes) = (0, Vec::new());
    for line in after {
        match before[at..].iter().position(|other| other == line) {
            Some(gone) => {
                changes.extend(before[at..at + gone].iter().map(|line| format!("- {line}")));
                at += gone + 1;
            }
            None => changes.push(format!("+ {line}")),
        }
    }
    changes.extend(before[at..].iter().map(|line| format!("- {line}")));
    changes
}

fn decisions(input: &str) -> String {
    let section = SECTIONS.iter().find(|section| input_line(section) == input);
    let section = section.unwrap_or_else(|| panic!("no such phase or goal: {input:?}"));
    let unusual = |(name, value): &(&str, &str)| {
        let usual =
            VARIABLES.iter().any(|(other, all, has)| *has && other == name && all.last() == Some(value));
        (!usual).then(|| format!("{name}={value}"))
    };
    let text = |line: &Line| {
        let conditions: Vec<String> = line.conditions.iter().filter_map(unusual).collect();
        let conditions = if conditions.is_empty() { "else".to_owned() } else { conditions.join(" ") };
        format!("{conditions}: {}\n", line.text)
    };
    section.lines.iter().map(text).collect()
}

fn input_line(section: &Section) -> String {
    format!("{} | goal {}", section.state, section.goal)
}

#[test]
fn transitions_listed_are_those_of_the_code() {
    let path = file("testdata/transitions.txt");
    let written = fs::read_to_string(&path).unwrap();
    let (head, sections) = written.split_once("\n\n").unwrap();
    let (mut found, mut inputs) = (format!("{head}\n"), Vec::new());
    for section in sections.split("\n\n") {
        let input = section.lines().next().unwrap();
        assert_eq!(section.lines().nth(1), Some(SEPARATOR), "{section}");
        found.push_str(&format!("\n{input}\n{SEPARATOR}\n{}", decisions(input)));
        inputs.push(input);
    }
    let all: Vec<String> = SECTIONS.iter().map(input_line).collect();
    assert_eq!(inputs, all, "every phase with every goal, once");
    compare(&path, &written, &found);
}

#[test]
fn transitions_drawn_are_those_of_the_code() {
    let path = file("../../docs/rotation.md");
    let written = fs::read_to_string(&path).unwrap();
    let (before, rest) = written.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let named = |ring: &Option<KeyRing>| {
        let state = state(ring.as_ref());
        state.contains(", ").then(|| format!("    state \"{state}\" as {}\n", state.replace(", ", "_")))
    };
    let states: String = rings().iter().filter_map(named).collect();
    let drawn = format!("```mermaid\nstateDiagram-v2\n{states}{}\n```", arrows().join("\n"));
    compare(&path, &written, &format!("{before}{BEGIN}\n{drawn}\n{END}{after}"));
}

#[test]
fn a_difference_shows_every_line_that_changed() {
    let difference = difference(&["a", "b", "c", "d"], &["a", "x", "c", "e"]);
    assert_eq!(difference, ["+ x", "- b", "+ e", "- d"]);
}
