//! What is wrong or unusual, and blocks nothing: a reason in one word, and what to do.

use std::{collections::BTreeSet, time::Duration};

use secureoverlay_keyring::acknowledgement::MAX_NAMES;

use super::Agent;
use crate::{Time, diff::Finding, proof::GRACE};

/// A flush of policies is reported for so long.
const FLUSH_SHOWN: Duration = Duration::from_secs(600);

/// Tunnel routes lead to addresses that no node announces.
pub const GATEWAY_UNKNOWN: &str = "GatewayUnknown";

/// A reason, and what it is about.
pub type Notice = (&'static str, String);

impl<S> Agent<S> {
    /// All notices that hold now.
    #[must_use]
    pub fn notices(&self, now: Time) -> Vec<Notice> {
        let mut notices = Vec::new();
        if let Some((count, _)) = self.flushes.filter(|(_, at)| *at + FLUSH_SHOWN > now) {
            let text = format!(
                "another program flushed the policies of this node, {count} times since the agent started; the agent \
                 put them back from memory. Find the program (ip xfrm policy flush) and stop it"
            );
            notices.push(("PoliciesFlushed", text));
        }
        let orphaned = |finding: &&Finding| matches!(finding, Finding::Orphaned(_));
        let orphaned = self.report.iter().flat_map(|report| &report.findings).find(orphaned);
        if let (Some(lost), Some(_)) = (self.lost_identity, orphaned) {
            let text = format!(
                "the agent found {lost} SAs of this node and no identity that they belong to: it drew a new one, and \
                 keeps them until their generations are gone. Find what removed the files of the state directory"
            );
            notices.push(("IdentityLost", text));
        }
        notices.extend(orphaned.map(|finding| (finding.reason(), finding.to_string())));
        if let Some(peers) = listed(&self.proofs.too_narrow().collect()) {
            let text = format!(
                "large packets by ESP get no answer from {peers}, small ones do: those pairs are not proven. Find \
                 the smallest MTU on the way, or lower the tunnel's"
            );
            notices.push(("LargePacketsUnanswered", text));
        }
        let unanswered = self.proofs.all_unanswered().filter(|(_, since)| *since + GRACE <= now);
        if let Some(peers) = listed(&unanswered.map(|(peer, _)| peer).collect()) {
            let text = format!(
                "{peers} did not answer for ten minutes by the SA that this node sends with: traffic may be lost. See \
                 whether their agents run, and whether ESP passes"
            );
            notices.push(("PairsUnanswered", text));
        }
        let gateways =
            self.ack.as_ref().map(|ack| &ack.unknown_gateways).filter(|gateways| gateways.count > 0);
        if let Some(gateways) = gateways {
            let named: Vec<String> = gateways.addresses.iter().map(ToString::to_string).collect();
            let text = format!(
                "{} gateways of tunnel routes are announced by no node, such as {}: traffic to pods behind them is not \
                 encrypted. See whether an agent runs there, and whether the routes are of a node that is gone",
                gateways.count,
                named.join(", ")
            );
            notices.push((GATEWAY_UNKNOWN, text));
        }
        let refused = self.report.iter().flat_map(|report| &report.refused);
        notices.extend(refused.map(|refused| (refused.reason(), refused.to_string())));
        notices
    }
}

/// Some of the names, and how many more there are; `None` without any.
fn listed(names: &BTreeSet<&str>) -> Option<String> {
    let first: Vec<&str> = names.iter().copied().take(MAX_NAMES).collect();
    let more = names.len() - first.len();
    let text = first.join(", ");
    (!first.is_empty()).then(|| if more > 0 { format!("{text} and {more} more") } else { text })
}
