//! Whether the nodes say what they have done, or time must tell.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use kube::Client;
use secureoverlay_daemon::{access, client::describe};

/// How long a "no" to the question whether we may look is believed.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Where the facts come from that a rotation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Acknowledgements {
    /// The nodes say so.
    Required,
    /// Time has passed.
    Timed,
    /// `required` where the manager has the rights for it, else `timed`.
    Auto,
}

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
#[error("asking whether {what} may be listed: {}", describe(.error))]
pub struct AccessError {
    what: &'static str,
    #[source]
    error: kube::Error,
}

/// Finds out which it is.
pub struct Chooser {
    client: Client,
    wanted: Acknowledgements,
    refused: Option<Instant>,
    granted: bool,
}

impl Chooser {
    /// Sends nothing yet.
    #[must_use]
    pub const fn new(client: Client, wanted: Acknowledgements) -> Self {
        Self { client, wanted, refused: None, granted: false }
    }

    /// Whether to go by what the nodes say. Once that was so it stays so: time is the weaker proof.
    ///
    /// # Errors
    /// Where the API server does not say what we may do.
    pub async fn acknowledged(&mut self, now: Instant) -> Result<bool, AccessError> {
        match self.wanted {
            Acknowledgements::Required => return Ok(true),
            Acknowledgements::Timed => return Ok(false),
            Acknowledgements::Auto if self.granted => return Ok(true),
            Acknowledgements::Auto => {}
        }
        if self.refused.is_some_and(|since| now.saturating_duration_since(since) < ASK_AGAIN) {
            return Ok(false);
        }
        self.granted =
            self.may_list("", "nodes").await? && self.may_list("secureoverlay.io", "nodeencryptions").await?;
        self.refused = (!self.granted).then_some(now);
        Ok(self.granted)
    }

    async fn may_list(&self, group: &str, what: &'static str) -> Result<bool, AccessError> {
        let answer = access::allowed(&self.client, "list", group, what, None, None).await;
        answer.map_err(|error| AccessError { what, error })
    }
}
