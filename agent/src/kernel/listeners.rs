//! Threads that hear of changes in the kernel made by other programs. Where they can't, the slow timer remains.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use secureoverlay_agent_kernel::{Event, Events, NetworkEvents, VmEvent, VmGenerationEvents};
use tokio::sync::Notify;

use super::Job;

/// Before another attempt to hear of changes in the kernel.
const AGAIN: Duration = Duration::from_secs(5);
/// Changes of addresses and routes are collected for so long.
const NETWORK_PAUSE: Duration = Duration::from_millis(500);

/// Starts the thread that hears of changes in the kernel made by other programs. Where it can't, the slow timer remains.
/// A flush of policies goes to the kernel's thread without a detour.
pub fn listen_to_kernel(jobs: Sender<Job>) -> Result<Arc<Notify>> {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let flushed = Arc::new(AtomicBool::new(false));
    let listen = move || {
        let mut failing = false;
        loop {
            let heard = Events::open().and_then(|mut events| {
                failing = false;
                loop {
                    match events.wait(None)? {
                        Some(Event::Flush) if !flushed.swap(true, Ordering::Relaxed) => {
                            // Without the thread this process ends.
                            let _ = jobs.send(Job::PutPoliciesBack(flushed.clone()));
                        }
                        Some(_) => notify.notify_one(),
                        None => {}
                    }
                }
            });
            if let (Err::<(), _>(error), false) = (heard, failing) {
                tracing::warn!(%error, "cannot hear of changes in the kernel; looking at it on the timer only");
                failing = true;
            }
            thread::sleep(AGAIN);
        }
    };
    thread::Builder::new()
        .name("kernel-events".into())
        .spawn(listen)
        .context("starting the thread for events")?;
    Ok(changed)
}

/// Starts the thread that hears of changes of addresses and routes. Where it can't, the slow timer remains.
pub fn listen_to_network(jobs: Sender<Job>) -> Result<()> {
    let listen = move || {
        let mut failing = false;
        loop {
            let heard = NetworkEvents::open().and_then(|mut events| {
                failing = false;
                loop {
                    events.wait(None)?;
                    // Changes come in bursts, and a look goes through all routes.
                    let looked = Instant::now() + NETWORK_PAUSE;
                    while let Some(rest) = looked.checked_duration_since(Instant::now()) {
                        events.wait(Some(rest))?;
                    }
                    if jobs.send(Job::LookAtNetwork).is_err() {
                        return Ok(());
                    }
                }
            });
            match heard {
                Ok(()) => return,
                Err(error) if !failing => {
                    tracing::warn!(%error, "cannot hear of changes of routes; looking at them on the timer only");
                    failing = true;
                }
                Err(_) => {}
            }
            thread::sleep(AGAIN);
        }
    };
    thread::Builder::new()
        .name("network-events".into())
        .spawn(listen)
        .context("starting the thread for changes of routes")?;
    Ok(())
}

/// Starts the thread that hears that this virtual machine was copied or put back, and calls `copied` until that says false.
/// Where it can't be heard, it is not noticed.
pub fn listen_to_vm(mut copied: impl FnMut() -> bool + Send + 'static) -> Result<()> {
    let follow = move || {
        let mut events = match VmGenerationEvents::open() {
            Ok(events) => events,
            Err(error) => return tracing::debug!(%error, "cannot hear whether this machine is copied"),
        };
        while let Ok(VmEvent::NewGeneration | VmEvent::Lost) = events.next_event() {
            if !copied() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("vm-generation".into())
        .spawn(follow)
        .context("starting the thread for VM events")?;
    Ok(())
}
