//! What an agent hears of the API server: counted, and of a light agent filtered.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use secureoverlay_agent::io::input::Input;
use secureoverlay_agent_core::{
    agent::Event,
    peers::{Content, PeerObject},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::interval};

/// As long as the main loop's own.
const QUEUE: usize = 1024;

/// What all agents of this process have heard.
#[derive(Default)]
pub struct Heard {
    lists: AtomicU64,
    peers: AtomicU64,
    rings: AtomicU64,
    others: AtomicU64,
}

impl Heard {
    fn note(&self, input: &Input) {
        let counter = match input {
            Input::Agent(Event::PeerList(_)) => &self.lists,
            Input::Agent(Event::PeerApplied(_) | Event::PeerDeleted(_)) => &self.peers,
            Input::Agent(Event::Ring(_)) => &self.rings,
            _ => &self.others,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn value(&self) -> Value {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "lists": read(&self.lists), "peer_events": read(&self.peers), "ring_events": read(&self.rings),
            "other_events": read(&self.others),
        })
    }
}

/// Puts a counter, and for a light agent a filter, before the agent's inputs.
pub fn through(
    to: mpsc::Sender<Input>,
    heard: Arc<Heard>,
    only: Option<Arc<BTreeSet<String>>>,
    own: String,
) -> mpsc::Sender<Input> {
    let (sender, mut from) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let keeps = |name: &str| only.as_ref().is_none_or(|only| name == own || only.contains(name));
        while let Some(input) = from.recv().await {
            heard.note(&input);
            let input = match input {
                Input::Agent(Event::PeerList(mut list)) => {
                    list.iter_mut().filter(|object| !keeps(&object.name)).for_each(empty);
                    Input::Agent(Event::PeerList(list))
                }
                Input::Agent(Event::PeerApplied(mut object)) if !keeps(&object.name) => {
                    empty(&mut object);
                    Input::Agent(Event::PeerApplied(object))
                }
                other => other,
            };
            if to.send(input).await.is_err() {
                return;
            }
        }
    });
    sender
}

/// Leaves of an object that it is there: the pace of an agent goes by the number of peers.
fn empty(object: &mut PeerObject) {
    if let Ok(Content::Announced(spec)) = &mut object.content {
        spec.senders.clear();
        spec.pod_networks.clear();
    }
}

/// Writes what was heard every second.
pub async fn tell(heard: Arc<Heard>, file: PathBuf) {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        if let Err(error) = write(&file, &heard.value()) {
            tracing::warn!(%error, file = %file.display(), "cannot write what was heard");
        }
    }
}

/// As a whole or not at all.
pub fn write(file: &Path, value: &Value) -> std::io::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, value.to_string())?;
    fs::rename(new, file)
}
