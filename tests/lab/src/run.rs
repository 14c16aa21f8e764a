//! Running other programs, with errors that say which, and what they said.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::progress::Stage;

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

/// Runs a long build for its effect, and tells now and then how many of its parts are made: it names one in each line
/// of its messages that `is_part`. A failure carries the other lines.
pub fn counted(
    command: &mut Command,
    step: &Stage,
    parts: &str,
    total: Option<usize>,
    is_part: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`; is it installed?", describe(command)))?;
    let stderr = child.stderr.take().context("no pipe from the child")?;
    let (mut made, mut said) = (0, Vec::new());
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if is_part(&line) {
            made += 1;
            step.so_far(|| match total {
                Some(total) => format!("{made} of {total} {parts}"),
                None => format!("{made} {parts}"),
            });
        } else {
            said.push(line);
        }
    }
    let status = child.wait().with_context(|| format!("waiting for `{}`", describe(command)))?;
    let said = last_lines(&said.join("\n"), 40);
    ensure!(status.success(), "`{}` failed ({status}): {said}", describe(command));
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::stage;

    #[test]
    fn a_failed_build_tells_why_and_not_what_it_made() {
        let build = |script: &str| {
            let mut command = command(["sh", "-c", script]);
            counted(&mut command, &stage("building", "0 s"), "parts", None, |line| !line.contains(' '))
        };
        build("echo one >&2; echo two >&2").unwrap();
        let error = build("echo made/one >&2; echo 'cannot make two' >&2; exit 3").unwrap_err().to_string();
        assert!(error.ends_with("cannot make two") && error.contains("exit status: 3"), "{error}");
        assert!(!error.contains("\nmade/one"), "{error}");
    }
}
