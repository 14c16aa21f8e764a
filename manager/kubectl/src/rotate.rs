//! `rotate`: asks for a new key by a KeyRotation, and tells how it goes. The rotation is the manager's: it goes on whatever
//! becomes of this program.

use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use secureoverlay_kubectl_core::{
    Exit,
    progress::Progress,
    snapshot::{Cleaned, Read, Rotation},
    text::clean,
};
use serde_json::json;
use terminal_size::{Width, terminal_size};
use tokio::time::{Instant, sleep};

use crate::{
    api::{Api, Kind},
    cli::RotateArgs,
    output::{is_terminal, print},
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// For this long the API server may be away while a rotation is followed.
const AWAY: Duration = Duration::from_secs(60);
/// A manager that works has taken a request up by then.
const TAKEN_UP: Duration = Duration::from_secs(30);
/// The exit status of a process that was interrupted.
const INTERRUPTED: u8 = 130;

/// Asks, and waits where that is wanted; the exit status.
pub async fn rotate(api: &Api, args: &RotateArgs) -> anyhow::Result<u8> {
    let name = ask(api, args.skip_unresponsive).await?;
    print(&format!("keyrotation.secureoverlay.io/{name}\n"))?;
    if !args.wait {
        return Ok(Exit::Good.code());
    }
    let mut screen = Screen { terminal: is_terminal(), said: String::new() };
    let goes_on = |why: &str| {
        format!("{why}: the rotation goes on. To see how: kubectl secureoverlay history -o wide\n")
    };
    let timed_out = async {
        match args.timeout {
            Some(timeout) => sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let (code, why) = tokio::select! {
        exit = follow(api, &name, &mut screen) => return Ok(exit?.code()),
        () = timed_out => (Exit::TimedOut.code(), "timed out"),
        _ = tokio::signal::ctrl_c() => (INTERRUPTED, "interrupted"),
    };
    screen.end()?;
    print(&goes_on(why))?;
    Ok(code)
}

/// Makes a KeyRotation, or tells the one under way to skip; its name.
async fn ask(api: &Api, skip: bool) -> anyhow::Result<String> {
    if skip {
        let there: Vec<Rotation> = api.list(Kind::KeyRotation, "").await.map_err(anyhow::Error::msg)?;
        if let Some(current) = there.into_iter().find(Rotation::is_under_way) {
            api.patch(Kind::KeyRotation, &current.name, &json!({"spec": {"skipUnresponsive": true}})).await?;
            return Ok(current.name);
        }
    }
    let object = json!({
        "apiVersion": "secureoverlay.io/v1alpha1", "kind": "KeyRotation",
        "metadata": {"generateName": "rotate-"}, "spec": {"skipUnresponsive": skip},
    });
    let made = Rotation::read(Cleaned::new(api.create(Kind::KeyRotation, &object).await?));
    Ok(made.name)
}

/// Tells how it goes until it is over.
async fn follow(api: &Api, name: &str, screen: &mut Screen) -> anyhow::Result<Exit> {
    let (start, mut hinted, mut failing) = (Instant::now(), false, None);
    loop {
        match api.get(Kind::KeyRotation, name).await {
            Ok(Some(object)) => {
                failing = None;
                let status = Rotation::read(Cleaned::new(object)).status;
                let status = status.map_err(anyhow::Error::msg).context("failed to read the KeyRotation")?;
                let progress = Progress::of(&status, Timestamp::now());
                screen.show(&progress)?;
                if let Some(exit) = progress.end {
                    screen.end()?;
                    return Ok(exit);
                }
                if !hinted && status.conditions.is_empty() && start.elapsed() > TAKEN_UP {
                    screen.end()?;
                    eprintln!("The manager has not taken it up: kubectl secureoverlay status");
                    hinted = true;
                }
            }
            Ok(None) => {
                screen.end()?;
                bail!("the KeyRotation {name} was deleted; a rotation that has begun goes on");
            }
            Err(error) => {
                if failing.get_or_insert_with(Instant::now).elapsed() > AWAY {
                    screen.end()?;
                    bail!("{}", clean(&error));
                }
            }
        }
        sleep(LOOK).await;
    }
}

/// One line that is drawn again and again on a terminal; elsewhere a line for each change.
struct Screen {
    terminal: bool,
    said: String,
}

impl Screen {
    fn show(&mut self, progress: &Progress) -> anyhow::Result<()> {
        if self.terminal {
            let width = terminal_size().map_or(80, |(Width(width), _)| usize::from(width));
            self.said = progress.bar(width.saturating_sub(1));
            return print(&format!("\r\x1b[2K{}", self.said));
        }
        if self.said != progress.line {
            self.said.clone_from(&progress.line);
            print(&format!("{}\n", self.said))?;
        }
        Ok(())
    }

    /// Leaves the line as it is.
    fn end(&mut self) -> anyhow::Result<()> {
        if self.terminal && !std::mem::take(&mut self.said).is_empty() { print("\n") } else { Ok(()) }
    }
}
