//! The same objects for `ip -batch`, which needs no acquaintance with us.

use std::{fmt::Write as _, io::Write as _, net::IpAddr, process::Command};

use anyhow::{Context, ensure};
use secureoverlay_agent_core::{
    plan::Plan,
    xfrm::{Direction, PolicyAction, REPLAY_WINDOW, REQID, Traffic},
};
use tempfile::NamedTempFile;

/// Writes the commands into a file in memory.
pub fn script(plan: &Plan) -> anyhow::Result<NamedTempFile> {
    let mut text = String::new();
    for planned in plan.sas.values() {
        let (src, dst, spi, suite) = (planned.sa.src, planned.sa.id.dst, planned.sa.id.spi, planned.sa.suite);
        let key: String = planned.sa.key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(
            text,
            "xfrm state add src {src} dst {dst} proto esp spi {spi} reqid {REQID} mode transport replay-window \
             {REPLAY_WINDOW} flag esn aead rfc4106(gcm(aes)) 0x{key} {} sel src {src} dst {dst}",
            8 * suite.icv_len()
        )?;
    }
    for (id, action) in &plan.policies {
        let (direction, priority) =
            (if id.direction == Direction::In { "in" } else { "out" }, action.priority());
        let (src, dst): (IpAddr, IpAddr) = (id.src.addr, id.dst.addr);
        let traffic = match id.traffic {
            Traffic::Tunnel => format!("proto {}", id.traffic.protocol()),
            Traffic::Probe(port) => format!("proto udp sport {port} dport {port}"),
        };
        write!(
            text,
            "xfrm policy add src {} dst {} {traffic} dir {direction} priority {priority}",
            id.src, id.dst
        )?;
        match action {
            PolicyAction::Esp(spi) => {
                let spi = spi.map(|spi| format!(" spi {spi}")).unwrap_or_default();
                writeln!(text, " tmpl src {src} dst {dst} proto esp{spi} reqid {REQID} mode transport")?;
            }
            PolicyAction::Allow => writeln!(text, " action allow")?,
            PolicyAction::Block => writeln!(text, " action block")?,
        }
    }
    let mut file = NamedTempFile::new().context("making a file for the commands")?;
    file.write_all(text.as_bytes()).context("writing the commands")?;
    Ok(file)
}

/// Runs it.
pub fn run(script: &NamedTempFile) -> anyhow::Result<()> {
    let status = Command::new("ip").arg("-batch").arg(script.path()).status().context("starting ip")?;
    ensure!(status.success(), "ip -batch failed: {status}");
    Ok(())
}
