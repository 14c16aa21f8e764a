//! Running other programs, with errors that say which, and what they said.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

/// One line for messages: the program and its arguments.
pub fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs a command to its end and returns what it printed; a failure carries its last lines.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`; is it installed?", describe(command)))?;
    checked(command, &out)?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Like [`output`], with something on standard input.
pub fn output_with_stdin(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`; is it installed?", describe(command)))?;
    let mut stdin = child.stdin.take().context("no pipe to the child")?;
    let mut stderr = child.stderr.take().context("no pipe from the child")?;
    let input = input.to_vec();
    // A child that exits early closes the pipe; its status tells more than our write error would.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        drop(stderr.read_to_end(&mut text));
        text
    });
    let mut out = child.wait_with_output().with_context(|| format!("waiting for `{}`", describe(command)))?;
    drop(writer.join());
    out.stderr = reader.join().unwrap_or_default();
    checked(command, &out)?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs a command for its effect.
pub fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// A command built from words.
pub fn command<I, S>(words: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut words = words.into_iter();
    let mut command = match words.next() {
        Some(program) => Command::new(program),
        None => Command::new("true"),
    };
    command.args(words);
    command
}

/// Whether a program is found in PATH (or in the system directories that a user's PATH may lack).
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

fn checked(command: &Command, out: &Output) -> Result<()> {
    if out.status.success() {
        return Ok(());
    }
    let mut said = String::from_utf8_lossy(&out.stderr).into_owned();
    if said.trim().is_empty() {
        said = String::from_utf8_lossy(&out.stdout).into_owned();
    }
    bail!("`{}` failed ({}): {}", describe(command), out.status, last_lines(&said, 12))
}

/// The end of a longer text, for an error message.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
