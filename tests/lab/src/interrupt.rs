//! Ctrl-C while labs are coming up or are used by the command that made them: they go too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};

use crate::lifecycle;
use crate::place::Place;
use crate::process::Recorded;
use crate::progress::note;

/// Exit status of a program ended by SIGINT, as shells report it.
const STATUS: i32 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static COMPANIONS: Mutex<Vec<Recorded>> = Mutex::new(Vec::new());

/// From now on, SIGINT and SIGTERM end this program, its companions and these labs. To be called once.
pub fn remove_on_interrupt(labs: Vec<Place>) -> Result<()> {
    ctrlc::set_handler(move || {
        INTERRUPTED.store(true, Ordering::SeqCst);
        // First: they would go on making what is removed here.
        for companion in COMPANIONS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            companion.kill_group();
        }
        if !labs.is_empty() {
            note("interrupted; removing what was made");
        }
        for place in &labs {
            if let Err(error) = lifecycle::remove(place) {
                note(format!("{error:#}; `cargo lab down` tries again"));
            }
        }
        std::process::exit(STATUS);
    })
    .context("watching for interrupts")
}

/// A process that works for this one, the leader of a group of its own: an interrupt ends the group.
pub fn end_on_interrupt(companion: Recorded) {
    COMPANIONS.lock().unwrap_or_else(PoisonError::into_inner).push(companion);
}

/// Called before the program ends by itself: does not return once an interrupt has begun to end it, whose
/// work must not be cut short by errors that it caused.
pub fn let_it_finish() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::park();
    }
}
