//! Watches of the API, as inputs of the main loop.
//!
//! | module | does |
//! |---|---|
//! | [`peers`] | the objects that announce nodes, or Nodes in their place |
//! | [`ring_source`] | the Secret with the key ring, or the mounted file |
//! | [`daemon_set`] | our DaemonSet, or our rights in its place |
//! | [`failures`] | tells the failures of a watch once |

pub mod daemon_set;
pub mod failures;
pub mod peers;
pub mod ring_source;

use kube::Client;
use secureoverlay_agent_core::agent::Event;
use secureoverlay_k8s::{
    object::Content,
    watch::{Failure, Source, Update, follow},
};
use tokio::sync::mpsc::{self, Sender};

use crate::{
    io::input::Input,
    telemetry::{heard::Heard, metrics::Metrics},
};

const QUEUE: usize = 1024;

/// Tells failures of one watch once, and their end.
struct Told {
    what: &'static str,
    failing: bool,
    metrics: Metrics,
    heard: Heard,
}

impl Told {
    fn failed(&mut self, failure: &Failure) {
        self.metrics.watch_error(self.what);
        if self.failing {
            tracing::debug!(watch = self.what, error = failure.message, "still cannot watch");
        } else {
            tracing::warn!(watch = self.what, error = failure.message, "cannot watch; keeping what is known");
        }
        self.failing = true;
    }

    fn heard(&mut self) {
        self.heard.note();
        if std::mem::take(&mut self.failing) {
            tracing::info!(watch = self.what, "the API answers again");
        }
    }
}

/// Watches `what` there is at a source, and tells it as events.
pub async fn watch<T: Content>(
    client: Client,
    (source, what): (Source, &'static str),
    (metrics, heard): (Metrics, Heard),
    mut to_events: impl FnMut(Update<T>) -> Option<Vec<Event>>,
    events: Sender<Input>,
) {
    let (updates, mut all) = mpsc::channel(QUEUE);
    tokio::spawn(follow::<T>(client, source, updates));
    let mut failures = Told { what, failing: false, metrics, heard };
    while let Some(update) = all.recv().await {
        match &update {
            Update::Failed(failure) => failures.failed(failure),
            _ => failures.heard(),
        }
        let went_back = matches!(update, Update::List { went_back: true, .. });
        let inputs = to_events(update).into_iter().flatten().map(Input::from);
        for input in inputs.chain(went_back.then_some(Input::HistoryWentBack)) {
            if events.send(input).await.is_err() {
                return;
            }
        }
    }
}
