//! Long-running programs of the lab: started apart from the command that starts them, known afterwards by
//! process id and start time, so that a process id used anew is never taken for ours.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

impl Recorded {
    /// Takes down a process that was just started.
    pub fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).context("a process id out of range")?;
        let (_, start_time) = stat(pid).with_context(|| format!("process {pid} ended at once"))?;
        Ok(Self { pid, start_time })
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| state != 'Z' && start == self.start_time)
    }

    /// Sends a signal, unless the process is gone.
    pub fn signal(&self, signal: Signal) {
        if self.is_running() {
            // It may end just now, which is as good.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Kills it and all of the group that it leads, unless it is gone.
    pub fn kill_group(&self) {
        if self.is_running() {
            // It may end just now, which is as good.
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Ends it: politely first if `grace` is more than nothing.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        if !grace.is_zero() {
            self.signal(Signal::SIGTERM);
            if self.ends_within(grace) {
                return Ok(());
            }
        }
        self.signal(Signal::SIGKILL);
        ensure!(self.ends_within(Duration::from_secs(10)), "process {} does not end", self.pid);
        Ok(())
    }

    fn ends_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

/// State and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it is in parentheses and may hold anything.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Files that the caller of this program has left open, such as a lock, are not for what outlives it.
const CLOSED: &str = r#"exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; exec "$@""#;

/// Starts a program in the lab's network namespace, its output appended to `log`.
pub fn start(netns: &Path, log: &Path, program: &Path, arguments: &[String]) -> Result<Recorded> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    let child = Command::new("sh")
        .args(["-c", CLOSED, "sh", "setsid", "nsenter"])
        .arg(format!("--net={}", netns.display()))
        .arg("--")
        .arg(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("sharing the log")?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    Recorded::of(child.id())
}

/// All processes that are in a network namespace: in the lab's, all are the lab's.
pub fn in_namespace(netns: &Path) -> Vec<Recorded> {
    let Ok(wanted) = fs::metadata(netns).map(|m| (m.dev(), m.ino())) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let namespace: PathBuf = entry.path().join("ns/net");
        if fs::metadata(namespace).is_ok_and(|m| (m.dev(), m.ino()) == wanted)
            && let Some((_, start_time)) = stat(pid)
        {
            found.push(Recorded { pid, start_time });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_process_id_is_not_ours() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let recorded = Recorded::of(child.id()).unwrap();
        assert!(recorded.is_running());
        let other = Recorded { start_time: recorded.start_time + 1, ..recorded.clone() };
        assert!(!other.is_running());
        other.stop(Duration::ZERO).unwrap();
        assert!(recorded.is_running(), "a process with another start time was killed");
        recorded.stop(Duration::from_secs(5)).unwrap();
        assert!(!recorded.is_running(), "a zombie does not run");
        child.wait().unwrap();
    }

    #[test]
    fn we_are_in_our_own_namespace() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(in_namespace(Path::new("/proc/self/ns/net")).iter().any(|p| p.pid == me));
        assert!(in_namespace(Path::new("/proc/self/ns/uts")).is_empty());
    }
}
