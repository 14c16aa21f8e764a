//! Watches of the API, as far as they are alike: a failure is told once, and so is its end.

use kube::runtime::watcher;
use secureoverlay_daemon::client::describe_watch;

use crate::telemetry::metrics::Metrics;

/// The state of one watch.
pub struct Watching {
    what: &'static str,
    failing: bool,
    metrics: Metrics,
}

impl Watching {
    /// A watch of `what`, in the plural.
    #[must_use]
    pub const fn new(what: &'static str, metrics: Metrics) -> Self {
        Self { what, failing: false, metrics }
    }

    /// Passes on what the watch yields, without its failures. The watcher goes on by itself.
    pub fn heard<K>(&mut self, item: watcher::Result<watcher::Event<K>>) -> Option<watcher::Event<K>> {
        match item {
            Ok(event) => {
                // A new list begins with an event of its own before the API has answered.
                if self.failing && !matches!(event, watcher::Event::Init) {
                    tracing::info!(watch = self.what, "the API answers again");
                    self.failing = false;
                }
                Some(event)
            }
            Err(error) => {
                self.metrics.watch_error(self.what);
                if expired(&error) {
                    return None;
                }
                let error = describe_watch(&error);
                if self.failing {
                    tracing::debug!(watch = self.what, error, "still cannot watch");
                } else {
                    tracing::warn!(watch = self.what, error, "cannot watch; going on with what is known");
                }
                self.failing = true;
                None
            }
        }
    }
}

/// The API server no longer knows the version that the watch was at: routine, a new list follows.
fn expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}
