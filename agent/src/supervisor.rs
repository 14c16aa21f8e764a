//! Process 1 of the container: runs the agent as its child, and starts another at once where a signal ended it.
//!
//! Without it, a killed agent costs the whole container, and the kubelet lets that wait for 10 s, 20 s … 5 min. Rotations
//! wait as long, and what another program removes from the kernel is not put back meanwhile.

use std::{
    collections::VecDeque,
    env,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGCHLD, SIGINT, SIGTERM},
    iterator::Signals,
};

/// The process that a container starts with.
const INIT: u32 = 1;
/// After so many deaths within [`WINDOW`], the kubelet's back-off is the better answer.
const DEATHS: usize = 20;
/// See [`DEATHS`].
const WINDOW: Duration = Duration::from_secs(600);

/// Whether this process is a container's first, and has to see to the agent.
#[must_use]
pub fn is_init() -> bool {
    std::process::id() == INIT
}

/// Runs this program again with the same arguments, until it ends by itself. Returns its exit code, or 128 and the signal.
///
/// # Errors
/// It can't be started, or not be waited for.
pub fn run() -> Result<u8> {
    let program = env::current_exe().context("finding this program")?;
    let status = supervise(|| {
        let mut agent = Command::new(&program);
        agent.args(env::args_os().skip(1));
        agent
    })?;
    let signal = status.signal().map_or(0, |signal| 128 + signal);
    Ok(u8::try_from(status.code().unwrap_or(signal)).unwrap_or(u8::MAX))
}

/// Starts what `command` says, again where a signal ends it, and passes on what asks for the end.
fn supervise(command: impl Fn() -> Command) -> Result<ExitStatus> {
    // Before the first child: none ends unheard.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGCHLD]).context("listening for signals")?;
    let mut deaths = VecDeque::new();
    loop {
        let mut child = command().spawn().context("starting the agent")?;
        let (status, asked) = wait(&mut child, &mut signals)?;
        let Some(signal) = status.signal().filter(|_| !asked) else { return Ok(status) };
        let now = Instant::now();
        deaths.push_back(now);
        deaths.retain(|death| now.duration_since(*death) < WINDOW);
        if deaths.len() >= DEATHS {
            tracing::error!(signal, "signals ended the agent {DEATHS} times within {WINDOW:?}; giving up");
            return Ok(status);
        }
        tracing::warn!(signal, "a signal ended the agent; starting another");
    }
}

/// Waits for the child to end. Also says whether it was asked to.
fn wait(child: &mut Child, signals: &mut Signals) -> Result<(ExitStatus, bool)> {
    let mut asked = false;
    for signal in signals.forever() {
        // The child has not been waited for: its process id is still its own.
        let pass_on = match signal {
            SIGTERM => Some(Signal::TERM),
            SIGINT => Some(Signal::INT),
            _ => None,
        };
        if let Some(signal) = pass_on {
            asked = true;
            let _ = kill_process(Pid::from_child(child), signal);
        }
        if let Some(status) = child.try_wait().context("waiting for the agent")? {
            return Ok((status, asked));
        }
    }
    unreachable!("signals never end")
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    /// One after the other: signals are those of the whole process.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    fn shell(script: &str) -> impl Fn() -> Command {
        move || {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        }
    }

    #[test]
    fn child_killed_by_a_signal_is_started_again_and_its_exit_code_ends_it() {
        let _alone = ALONE.lock();
        let directory = tempfile::tempdir().unwrap();
        let count = directory.path().join("count");
        let script =
            format!("echo >> {0}; test $(wc -l < {0}) -ge 3 && exit 7; kill -KILL $$", count.display());
        assert_eq!(supervise(shell(&script)).unwrap().code(), Some(7));
        assert_eq!(std::fs::read_to_string(count).unwrap().lines().count(), 3);
    }

    #[test]
    fn one_that_dies_all_the_time_is_left_to_the_kubelet() {
        let _alone = ALONE.lock();
        assert_eq!(supervise(shell("kill -KILL $$")).unwrap().signal(), Some(9));
    }

    #[test]
    fn request_to_end_is_passed_on_and_is_no_reason_to_start_another() {
        let _alone = ALONE.lock();
        let directory = tempfile::tempdir().unwrap();
        let runs = directory.path().join("runs");
        let script = format!("touch {}; exec sleep 60", runs.display());
        let request = thread::spawn(move || {
            while !runs.exists() {
                thread::sleep(Duration::from_millis(10));
            }
            kill_process(rustix::process::getpid(), Signal::TERM).unwrap();
        });
        assert_eq!(supervise(shell(&script)).unwrap().signal(), Some(15));
        request.join().unwrap();
    }
}
