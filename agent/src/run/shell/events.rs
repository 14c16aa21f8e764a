//! What sources and the kernel's thread tell, handed to the decisions.

use secureoverlay_agent_core::{
    agent::{Event, IdentityStore},
    network::LocalNetwork,
};
use secureoverlay_keyring::settings::DeletionPolicy;
use tokio::time::Instant;

use super::Shell;
use crate::{clock::now, io::input::Input, kernel::News, run::shutdown::Answer, uninstall::removal::Verdict};

impl<S: IdentityStore> Shell<S> {
    pub(super) fn take(&mut self, input: Input) {
        match input {
            Input::Agent(event) => self.agent.handle_event(event, now()),
            Input::OwnNode(lookup, facts) => {
                self.agent.handle_event(Event::OwnNode(lookup), now());
                if let Some(facts) = facts {
                    self.fallback = facts.address().or(self.fallback);
                    self.pod_cidrs = Some(facts.pod_cidrs);
                    self.take_network();
                }
            }
            Input::DaemonSet(sighting) => {
                let removal =
                    self.lifecycle.see(sighting, self.agent.is_uninstalling()) && !self.keeps_kernel();
                self.agent.handle_event(Event::Installation(self.lifecycle.installation()), now());
                if removal {
                    self.uninstall();
                }
                self.mark.set(self.lifecycle.orphaned());
            }
            Input::Paths(query) => self.answer_paths(query),
            Input::HistoryWentBack => self.reporter.history_went_back(),
            Input::MtuSetting(setting) => self.reporter.mtu_setting(&self.agent, setting),
        }
    }

    pub(super) fn hear(&mut self, news: News) {
        match news {
            News::Network(network) => match *network {
                Ok(network) => {
                    self.network = Some(network);
                    self.take_network();
                }
                Err(error) => tracing::warn!(error, "cannot read this node's addresses and routes"),
            },
            News::Mtu(facts) => {
                self.reporter.look_at_swap();
                self.reporter.mtu(&self.agent, facts);
                self.agent
                    .handle_event(Event::TunnelMtuTooLarge(self.reporter.tunnel_mtu_too_large()), now());
                self.take_network();
            }
            News::Surroundings(surroundings) => {
                let blockers = surroundings.blockers();
                self.reporter.surroundings(*surroundings);
                self.agent.handle_event(Event::Blockers("surroundings", blockers), now());
            }
            News::PoliciesFlushed(count, took) => {
                self.reporter.policies_flushed(count, took);
                self.agent.handle_event(Event::PoliciesFlushed, now());
            }
            News::Counts => self.agent.handle_event(Event::KernelLost, now()),
            News::Attempt(attempt) => {
                let blockers = self.reporter.attempt_ended(&attempt);
                let report = attempt.run.ok();
                self.agent.handle_event(Event::Blockers("policies", blockers), now());
                self.agent.handle_reconciled(report, now());
                self.reporter.attempt_taken(&self.agent);
            }
        }
    }

    pub(super) fn end(&mut self, answer: Answer) {
        let judged = match answer {
            Answer::DaemonSet(sighting) => self.lifecycle.judge(sighting),
            Answer::Verdict(verdict) => verdict,
        };
        let verdict = if self.keeps_kernel() { Verdict::Restart } else { judged };
        let reason = match verdict {
            _ if self.agent.is_uninstalling() => "the removal goes on first",
            _ if verdict != judged => "this is a removal, and deletionPolicy is KeepKernelState",
            Verdict::Removal => "this is a removal",
            Verdict::Restart => "nothing shows that this is a removal",
        };
        tracing::info!(reason, "asked to end");
        if verdict == Verdict::Removal {
            self.uninstall();
        }
        self.lifecycle.end(verdict);
    }

    /// Whether a removal leaves the kernel as it is, by the settings of the ring that was applied last.
    fn keeps_kernel(&self) -> bool {
        let ring = self.agent.applied_ring();
        ring.is_some_and(|ring| ring.settings.deletion_policy == DeletionPolicy::KeepKernelState)
    }

    fn uninstall(&mut self) {
        if !self.agent.is_uninstalling() {
            self.reporter.removal_begins();
        }
        self.agent.handle_event(Event::Uninstall, now());
    }

    /// What the kernel shows of the network; before it has routes of tunnels, with the address of the Node object.
    pub(super) fn network(&self) -> Option<LocalNetwork> {
        let mut network = self.network.clone()?;
        if network.tunnel_addresses.is_empty() {
            network.tunnel_addresses.extend(self.fallback);
        }
        if let Some(pod_cidrs) = &self.pod_cidrs {
            network.adopt_bridges(pod_cidrs);
        }
        network.tunnel_mtu = self.reporter.tunnel_mtu();
        (!network.tunnel_addresses.is_empty()).then_some(network)
    }

    fn take_network(&mut self) {
        if let Some(network) = self.network() {
            self.agent.handle_event(Event::Network(network), now());
            self.sockets_due = Some(Instant::now());
        }
    }
}
