//! The MTUs of this node, and what sets them.

use secureoverlay_agent_core::agent::{Agent, IdentityStore};
use secureoverlay_keyring::inspection::MtuRoom;

use super::Reporter;
use crate::network::{mtu, mtu_setting::MtuSetting};

impl Reporter {
    /// Takes the MTUs of this node, or why they could not be read.
    pub fn mtu<S: IdentityStore>(&mut self, agent: &Agent<S>, facts: Result<mtu::Facts, String>) {
        let failure = facts.map(|facts| self.mtu_facts = facts).err();
        if let Some(error) = failure.as_ref().filter(|error| self.mtu_failure.as_ref() != Some(*error)) {
            tracing::warn!(error, "cannot read the MTUs of this node");
        }
        self.mtu_failure = failure;
        self.known = agent.ring_cache().ring().cloned().or(self.known.take());
        self.say_mtu();
    }

    /// Takes what sets the MTU of the tunnels.
    pub fn mtu_setting<S: IdentityStore>(&mut self, _: &Agent<S>, setting: MtuSetting) {
        self.mtu_setting = setting;
        self.say_mtu();
    }

    pub(super) fn say_mtu(&mut self) {
        let finding = self.known.as_ref().and_then(|ring| mtu::Finding::new(&self.mtu_facts, ring));
        let finding = finding.map(|finding| finding.advised(&self.mtu_setting));
        if finding == self.mtu {
            return;
        }
        match &finding {
            Some(finding) if finding.valid() => tracing::info!(mtu = finding.tunnel.mtu, "{finding}"),
            Some(finding) => tracing::warn!(mtu = finding.tunnel.mtu, "{finding}"),
            None => {}
        }
        self.metrics.mtu(finding.as_ref());
        self.mtu = finding;
    }

    /// What sets the tunnels' MTU is worth finding out.
    #[must_use]
    pub fn needs_mtu_advice(&self) -> bool {
        self.mtu.as_ref().is_some_and(mtu::Finding::needs_advice)
    }

    /// The tunnel's MTU leaves no room for ESP.
    #[must_use]
    pub fn tunnel_mtu_too_large(&self) -> bool {
        self.mtu.as_ref().is_some_and(|finding| !finding.valid())
    }

    /// The tunnel's MTU and its limit.
    #[must_use]
    pub fn mtu_room(&self) -> Option<MtuRoom> {
        let finding = self.mtu.as_ref()?;
        let (interface, tunnel) = (finding.tunnel.interface.clone(), finding.tunnel.mtu);
        Some(MtuRoom { interface, tunnel, limit: finding.bound.accepted() })
    }

    /// Bytes of the largest packet that the tunnel takes.
    #[must_use]
    pub fn tunnel_mtu(&self) -> Option<u16> {
        self.mtu_facts.tunnels.first().and_then(|tunnel| tunnel.mtu.try_into().ok())
    }
}
