//! Ctrl-C while a lab is coming up or is used by the command that made it: the lab goes too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};

use crate::lifecycle;
use crate::progress::note;

/// Exit status of a program ended by SIGINT, as shells report it.
const STATUS: i32 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on, SIGINT and SIGTERM end this program, and the lab if `remove` is set.
pub fn remove_lab_on_interrupt(remove: bool) -> Result<()> {
    ctrlc::set_handler(move || {
        INTERRUPTED.store(true, Ordering::SeqCst);
        if remove {
            note("interrupted; removing the lab");
            if let Err(error) = lifecycle::remove() {
                note(format!("{error:#}; `cargo lab down` tries again"));
            }
        }
        std::process::exit(STATUS);
    })
    .context("watching for interrupts")
}

/// Called before the program ends by itself: does not return once an interrupt has begun to end it, whose
/// work must not be cut short by errors that it caused.
pub fn let_it_finish() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::park();
    }
}
