//! What a manager's write does to the world, and what is checked before it.

use std::time::Duration;

use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    ring::{Ring, Role},
    rotation::Action,
};
use secureoverlay_manager_core::controller::{Write, WriteResult};

use crate::{
    api::Secret,
    variant::Variant,
    world::{Break, World},
};

/// What a node that is pressed on is given, by the protocol.
const PRESSED: Duration = Duration::from_secs(30);
/// An agent that nothing hinders any more has followed by then.
const RECOVERED: Duration = Duration::from_secs(100);

impl World {
    /// A manager writes.
    pub(crate) fn write(&mut self, at: usize, write: &Write) -> WriteResult {
        let Some((secret, version)) = self.objects.secret.clone() else { return WriteResult::Conflict };
        let unconditional = self.variant == Some(Variant::WriteUnconditionally);
        if write.resource_version != Some(version.to_string()) && !unconditional {
            self.tell(|| format!("manager {at}: conflict"));
            return WriteResult::Conflict;
        }
        let next = &write.ring;
        let action = write.action.unwrap_or(Action::Wait);
        let nodes = self.known_nodes(at);
        let behind = self.left_behind(at, action);
        // Both may leave a ring behind that was made for another installation.
        if !matches!(action, Action::Reset | Action::Bootstrap) {
            self.check_drop(next, &nodes, &behind);
        }
        if action == Action::ENFORCE {
            self.check_insist(&nodes);
        }
        let before = self.history.last().cloned();
        let mut requests = secret.requests;
        requests.rotate &= !write.answered.rotate;
        requests.press_on &= !write.answered.press_on;
        let document = Some(next.to_yaml().as_bytes().to_vec());
        let version = self.write_secret(Some(Secret { document, requests, ..secret }));
        for machine in behind {
            self.machines[machine].left_behind = Some(version);
        }
        match action {
            Action::Bootstrap => self.note_break(version, Break::Lost, before.as_deref()),
            Action::Reset => self.note_break(version, Break::Reset, before.as_deref()),
            Action::RemoveRetired => self.tally.rotations += 1,
            Action::Rekey => self.tally.rekeys += 1,
            Action::Activate => {
                let active = next.active().map(|active| (active.uid, (active.incarnations.clone(), version)));
                self.activated.extend(active);
            }
            Action::ENFORCE => self.tally.insisted += 1,
            Action::Disable => self.tally.quits += 1,
            Action::Wait | Action::Stage | Action::Pend | Action::SetEnforcement(_) | Action::StopSending => {
            }
        }
        self.tell(|| format!("manager {at}: {action:?}, revision {} is {}", next.revision, roles(next)));
        WriteResult::Written
    }

    /// The Nodes that a manager decides on; those that there are, where it sees none.
    fn known_nodes(&self, at: usize) -> Vec<NodeFacts> {
        match self.scenario.timed {
            None => self.managers[at].seen.1.nodes.clone(),
            Some(_) => self.objects.nodes.values().cloned().collect(),
        }
    }

    /// Machines that a write goes on without, and may: excluded, not ready for as long as the limit says, pressed on, or
    /// hindered while time decides.
    fn left_behind(&self, at: usize, action: Action) -> Vec<usize> {
        let waits_for = match action {
            Action::Activate => Role::Staged,
            Action::RemoveRetired | Action::Disable => Role::Retiring,
            _ => return Vec::new(),
        };
        let (ring, cluster) = &self.managers[at].seen;
        let awaited = ring.as_ref().and_then(|ring| ring.with_role(waits_for));
        let since = awaited.map_or(self.now, |generation| {
            self.roles.get(&(generation.uid, generation.role)).copied().unwrap_or(self.now)
        });
        let waited = self.now - since >= self.scenario.limit;
        let press_on = self.objects.secret.as_ref().is_some_and(|(secret, _)| secret.requests.press_on);
        let pressed = press_on && self.now - since >= PRESSED.min(self.scenario.limit);
        let said = |node: &NodeFacts| cluster.acknowledgements.get(&node.name);
        // One to which nobody encrypts, and that nobody hears.
        let mute = |node: &NodeFacts| {
            let pending = ring.as_ref().zip(node.uid).is_some_and(|(ring, uid)| ring.pending.contains(&uid));
            let heard = said(node);
            pending && heard.is_none_or(|said| node.uid != Some(said.node) || node.boot != Some(said.boot))
        };
        let follows =
            |said: &Acknowledgement| match (waits_for, awaited, ring.as_ref().and_then(Ring::active)) {
                (Role::Staged, Some(staged), _) => {
                    said.receives.get(&staged.uid) == Some(&staged.incarnations)
                }
                (_, _, Some(active)) => said.sends == Some(active.uid),
                (_, _, None) => said.silent,
            };
        // One that takes no part, and may again before it has heard of this.
        let behind = |node: &NodeFacts| {
            node.excluded
                || (waited && (!node.ready || mute(node)))
                || (pressed && !said(node).is_some_and(follows))
        };
        let (timed, nodes) = (self.scenario.timed.is_some(), self.known_nodes(at));
        let machines = self.machines.iter().enumerate();
        let behind = machines.filter(|(_, machine)| {
            let hindered = timed && machine.hindered_until + RECOVERED > since;
            let node = nodes.iter().find(|node| node.name == machine.name);
            hindered || node.is_some_and(behind)
        });
        behind.map(|(at, _)| at).collect()
    }
}

/// The generations and their roles, for the story.
#[must_use]
pub fn roles(ring: &Ring) -> String {
    let text: Vec<String> = ring
        .generations
        .iter()
        .map(|generation| {
            let incarnations: Vec<u32> = generation.incarnations.values().copied().collect();
            format!("{} {:?} {incarnations:?}", generation.id, generation.role)
        })
        .collect();
    format!("[{}]", text.join(", "))
}
