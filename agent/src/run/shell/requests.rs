//! What the decisions want from the API; each answer comes back as an input.

use secureoverlay_agent_core::{
    agent::{Event, IdentityStore},
    announcer::Request,
    peers::NodeLookup,
};
use tokio::time::sleep;

use super::{AGAIN, Shell};
use crate::io::{input::Input, requests};

impl<S: IdentityStore> Shell<S> {
    pub(super) fn request(&self, request: Request) {
        let (client, inputs, node) = (self.api.client.clone(), self.inputs.clone(), self.api.node.clone());
        tokio::spawn(async move {
            let answers: Vec<Input> = match request {
                Request::GetOwnNode => {
                    let (lookup, facts) = requests::look_up_node(&client, &node).await;
                    vec![Input::OwnNode(lookup, facts)]
                }
                Request::GetRing => {
                    requests::read_ring(&client).await.into_iter().map(Input::Agent).collect()
                }
                Request::Write(announcement) => {
                    let events = requests::announce(&client, &node, &announcement).await;
                    events.into_iter().map(Input::Agent).collect()
                }
            };
            for answer in answers {
                let _ = inputs.send(answer).await;
            }
        });
    }

    /// Whether a peer's Node is there.
    pub(super) fn look_up_node(&self, peer: String) {
        let (client, inputs) = (self.api.client.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let (lookup, _) = requests::look_up_node(&client, &peer).await;
            let _ = inputs.send(Event::PeerNode(peer, lookup).into()).await;
        });
    }

    /// What the Node shows is needed before the kernel has routes of tunnels.
    pub(super) fn look_up_own_node(&self) {
        let (client, inputs, node) = (self.api.client.clone(), self.inputs.clone(), self.api.node.clone());
        tokio::spawn(async move {
            loop {
                let (lookup, facts) = requests::look_up_node(&client, &node).await;
                let found = lookup != NodeLookup::Failed;
                if inputs.send(Input::OwnNode(lookup, facts)).await.is_err() || found {
                    return;
                }
                sleep(AGAIN).await;
            }
        });
    }
}
