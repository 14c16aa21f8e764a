//! What happens, as the main loop hears of it.

use secureoverlay_agent_core::{agent::Event, peers::NodeLookup};
use secureoverlay_k8s::node::NodeFacts;

use super::queries::PathQuery;
use crate::{network::mtu_setting::MtuSetting, uninstall::removal::Sighting};

/// Something that happened.
pub enum Input {
    /// For the decisions.
    Agent(Event),
    /// What a GET of this node's Node said, and what it shows.
    OwnNode(NodeLookup, Option<NodeFacts>),
    /// What the API shows of our DaemonSet; `None` where this agent may not read it.
    DaemonSet(Option<Sighting>),
    /// The API server's history went back: what this agent wrote may be gone.
    HistoryWentBack,
    /// What sets the MTU of the tunnels.
    MtuSetting(MtuSetting),
    /// An operator asks for the pairs with a peer.
    Paths(PathQuery),
}

impl From<Event> for Input {
    fn from(event: Event) -> Self {
        Self::Agent(event)
    }
}
