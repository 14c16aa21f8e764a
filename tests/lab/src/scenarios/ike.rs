//! A strongSwan tunnel between two nodes.

use anyhow::{Context, Result};

use super::cluster::until;
use super::overlay::PATIENCE;
use crate::cache::{self, strongswan};
use crate::lab::Lab;
use crate::state::Node;

/// What the two ends protect, each on its loopback.
const PROTECTED: [&str; 2] = ["192.168.71.1", "192.168.72.1"];

/// Starts the daemon; its own directory is seen in the place of the system's.
const START: &str = r#"set -e
ip address add "$OWN/32" dev lo
mount --bind "$PROGRAMS" /usr/lib/ipsec
cat > /etc/strongswan.conf <<END
charon {
  load = random nonce openssl kernel-netlink socket-default vici
  filelog { log { path = /run/charon.log } }
}
END
cat > /etc/swanctl/swanctl.conf <<END
connections { lab {
  version = 2
  local_addrs = $LOCAL
  remote_addrs = $REMOTE
  rekey_time = 0
  local { auth = psk }
  remote { auth = psk }
  children { net {
    local_ts = $OWN/32
    remote_ts = $OTHER/32
    rekey_time = 0
    esp_proposals = aes128gcm16
  } }
} }
secrets { ike-lab { secret = "of the lab" } }
END
# One that a daemon before it left would be taken for its own.
rm -f /run/charon.vici
setsid /usr/lib/ipsec/charon > /run/charon.out 2>&1 < /dev/null &
for i in $(seq 100); do [ -S /run/charon.vici ] && break; sleep 0.1; done
swanctl --load-all
"#;

const STOP: &str = r#"
kill "$(cat /run/charon.pid)" || true
for i in $(seq 100); do [ -e /run/charon.pid ] || break; sleep 0.1; done
umount /usr/lib/ipsec
ip address delete "$OWN/32" dev lo
"#;

/// A tunnel that is up.
#[derive(Debug)]
pub struct Ike<'a> {
    lab: &'a Lab,
    ends: [&'a Node; 2],
}

impl<'a> Ike<'a> {
    /// Starts strongSwan on both nodes and brings up the tunnel.
    pub fn start(lab: &'a Lab, one: &'a Node, two: &'a Node) -> Result<Self> {
        let cached = strongswan::get(lab.release().node_suite)?;
        let programs = cached.strip_prefix(cache::directory()?).context("strongSwan is not in the cache")?;
        let programs = format!("/lab/cache/{}/usr/lib/ipsec", programs.display());
        let ike = Self { lab, ends: [one, two] };
        let up = || -> Result<()> {
            for (own, [local, remote]) in [[one, two], [two, one]].into_iter().enumerate() {
                let (own, other) = (PROTECTED[own], PROTECTED[1 - own]);
                let variables = format!(
                    "PROGRAMS={programs} OWN={own} OTHER={other} LOCAL={} REMOTE={}\n",
                    local.ip, remote.ip
                );
                lab.exec_ok(&local.name, &["bash", "-c", &(variables + START)])?;
            }
            lab.exec_ok(&one.name, &["swanctl", "--initiate", "--child", "net"])?;
            until("strongSwan's tunnel to work", PATIENCE / 6, || ike.works())
        };
        match up() {
            Ok(()) => Ok(ike),
            Err(error) => {
                let log = lab.exec(&one.name, &["tail", "-n", "30", "/run/charon.log", "/run/charon.out"]);
                let log = log.map(|outcome| outcome.stdout).unwrap_or_default();
                ike.stop()?;
                Err(error.context(format!("strongSwan does not run; its log ended with:\n{log}\n")))
            }
        }
    }

    /// Whether packets pass the tunnel, both ways; there is no other way between the protected addresses.
    pub fn works(&self) -> Result<bool> {
        let words = ["ping", "-q", "-c", "3", "-i", "0.05", "-W", "2", "-I", PROTECTED[0], PROTECTED[1]];
        Ok(self.lab.exec(&self.ends[0].name, &words)?.status == 0)
    }

    /// Stops strongSwan, which takes its entries along.
    pub fn stop(self) -> Result<()> {
        for (node, own) in self.ends.into_iter().zip(PROTECTED) {
            self.lab.exec(&node.name, &["bash", "-c", &format!("OWN={own}\n{STOP}")])?;
        }
        Ok(())
    }
}
