//! Whether the agents' DaemonSet is there, and which one it is.

use std::time::{Duration, Instant};

use k8s_openapi::{api::apps::v1::DaemonSet, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, core::Status};
use secureoverlay_k8s::{
    access,
    client::describe,
    names::{DAEMON_SET, NAMESPACE},
};
use secureoverlay_rotation::Installation;

/// Deleting with `--cascade=orphan` leaves the agents running: no removal.
const ORPHAN: &str = "orphan";

/// How long a "no" to the question whether we may look is believed.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// About the right to look.
    #[error("failed to ask whether the DaemonSet {NAMESPACE}/{DAEMON_SET} may be read: {}", describe(.0))]
    Access(#[source] kube::Error),
    /// The look itself.
    #[error("failed to read the DaemonSet {NAMESPACE}/{DAEMON_SET}: {}", describe(.0))]
    Read(#[source] kube::Error),
    /// No identity.
    #[error("the DaemonSet {NAMESPACE}/{DAEMON_SET} has no usable UID")]
    Uid,
}

/// Looks at the DaemonSet where that is allowed.
pub struct Observer {
    client: Client,
    api: Api<DaemonSet>,
    access: Access,
}

/// Whether we may look, by the last access review.
#[derive(Clone, Copy)]
enum Access {
    Unknown,
    Allowed,
    Refused { since: Instant },
}

impl Observer {
    /// Sends nothing yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { api: Api::namespaced(client.clone(), NAMESPACE), client, access: Access::Unknown }
    }

    /// What the API server says now. That looking is not allowed is taken from an access review, never from a refusal,
    /// which a starting API server hands out at random.
    ///
    /// # Errors
    /// Where there is no answer, or one that can't be relied on.
    pub async fn observe(&mut self, now: Instant) -> Result<Installation, InstallationError> {
        if !self.may_look(now).await? {
            return Ok(Installation::Unknown);
        }
        match self.api.get_metadata(DAEMON_SET).await {
            Ok(daemon_set) => judge(&daemon_set.metadata),
            Err(kube::Error::Api(status)) if names_the_daemon_set(&status) => Ok(Installation::Absent),
            Err(error) => {
                self.access = Access::Unknown;
                Err(InstallationError::Read(error))
            }
        }
    }

    async fn may_look(&mut self, now: Instant) -> Result<bool, InstallationError> {
        match self.access {
            Access::Allowed => return Ok(true),
            Access::Refused { since } if now.saturating_duration_since(since) < ASK_AGAIN => {
                return Ok(false);
            }
            Access::Unknown | Access::Refused { .. } => {}
        }
        let allowed =
            access::allowed(&self.client, "get", "apps", "daemonsets", Some(DAEMON_SET), Some(NAMESPACE))
                .await
                .map_err(InstallationError::Access)?;
        self.access = if allowed { Access::Allowed } else { Access::Refused { since: now } };
        Ok(allowed)
    }
}

fn judge(meta: &ObjectMeta) -> Result<Installation, InstallationError> {
    let orphaning = meta.finalizers.iter().flatten().any(|finalizer| finalizer == ORPHAN);
    if meta.deletion_timestamp.is_some() && !orphaning {
        return Ok(Installation::Absent);
    }
    let uid = meta.uid.as_deref().and_then(|uid| uid.parse().ok());
    uid.map(Installation::Present).ok_or(InstallationError::Uid)
}

/// A proxy's 404 is no word on the DaemonSet, and what follows from this one switches encryption off.
fn names_the_daemon_set(status: &Status) -> bool {
    let details = status.details.as_ref();
    status.reason == "NotFound"
        && details.is_some_and(|details| details.name == DAEMON_SET && details.kind == "daemonsets")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_daemon_set_that_is_being_deleted_is_absent_unless_it_orphans_its_pods() {
        let uid = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d";
        let present = Installation::Present(uid.parse().unwrap());
        let deleted = "2026-11-20T03:00:00Z";
        for (meta, expected) in [
            (json!({"uid": uid}), present),
            (json!({"uid": uid, "deletionTimestamp": deleted}), Installation::Absent),
            (
                json!({"uid": uid, "deletionTimestamp": deleted, "finalizers": ["foregroundDeletion"]}),
                Installation::Absent,
            ),
            (json!({"uid": uid, "deletionTimestamp": deleted, "finalizers": ["orphan"]}), present),
        ] {
            assert_eq!(judge(&serde_json::from_value(meta).unwrap()).unwrap(), expected);
        }
        assert!(matches!(judge(&ObjectMeta::default()), Err(InstallationError::Uid)));
    }
}
