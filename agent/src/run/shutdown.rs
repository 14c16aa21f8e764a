//! What only the API can say when the process is asked to end: is this a removal?

use kube::Client;

use crate::{
    io::watches::daemon_set,
    uninstall::{
        lifecycle::ShutdownQuery,
        removal::{Sighting, Verdict},
    },
};

/// An answer of the API.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    DaemonSet(Option<Sighting>),
    Verdict(Verdict),
}

/// Whom to ask.
#[derive(Clone)]
pub struct Api {
    pub client: Client,
    pub anonymous: Option<Client>,
    pub node: String,
}

impl Api {
    pub async fn ask(self, query: ShutdownQuery) -> Answer {
        match query {
            ShutdownQuery::None => Answer::Verdict(Verdict::Restart),
            ShutdownQuery::DaemonSet => Answer::DaemonSet(daemon_set::ask(self.client).await),
            // It may be readable by now.
            ShutdownQuery::Node => match daemon_set::ask(self.client.clone()).await {
                Some(sighting) => Answer::DaemonSet(Some(sighting)),
                None => {
                    Answer::Verdict(daemon_set::ask_for_rights(self.client, self.anonymous, &self.node).await)
                }
            },
        }
    }
}
