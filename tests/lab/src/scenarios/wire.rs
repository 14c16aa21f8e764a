//! The bridge beside the probes: what was on the wire while pods talked.

use std::time::Duration;

use anyhow::Result;
use secureoverlay_prober::summary::Summary;

use super::probe::Probe;
use crate::capture::{Capture, Captured, Counts};
use crate::progress::note;
use crate::scenario::Report;

/// What the probes' own figures of who stood still when may be off by on a busy machine. A packet that did not come at all is not
/// hidden by it: it counts as lost.
const NOISE: Duration = Duration::from_millis(100);

/// Probes, and the frames between nodes meanwhile.
#[derive(Debug)]
pub struct Watched {
    when: String,
    pairs: usize,
    /// What the pods counted.
    pub probes: Summary,
    /// What the bridge saw.
    pub wire: Counts,
    /// The packets themselves.
    pub captured: Captured,
}

/// Probes and captures while `event` happens; `when` says in reports what that is.
pub fn watch(probe: &Probe, when: &str, event: impl FnOnce() -> Result<()>) -> Result<Watched> {
    let file: String = when.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let capture = Capture::start(&file, None)?;
    let measurement = probe.start()?;
    let outcome = event();
    let probes = measurement.stop();
    let captured = capture.stop();
    outcome?;
    let (probes, captured) = (probes?, captured?);
    Ok(Watched { when: when.to_owned(), pairs: probe.pairs(), probes, wire: captured.counts(), captured })
}

/// Probes and captures with nothing else going on.
pub fn watch_for(probe: &Probe, when: &str, time: Duration) -> Result<Watched> {
    watch(probe, when, || {
        std::thread::sleep(time);
        Ok(())
    })
}

/// Probes for a while without any event, for comparison.
pub fn baseline(probe: &Probe, report: &mut Report, time: Duration) -> Result<Summary> {
    let baseline = probe.run_for(time)?;
    let lost = baseline.lost;
    if baseline.invalid.is_empty() {
        report.check(lost == 0, format!("baseline: {lost} lost"));
    } else {
        let why = &baseline.invalid;
        report.proves_nothing(format!("baseline: the measurement proves nothing: {why:?}, {lost} lost"));
    }
    Ok(baseline)
}

impl Watched {
    /// The probes prove something, in all directions, and none was lost.
    pub fn check_delivered(&self, report: &mut Report) {
        let (when, pairs, probes) = (&self.when, self.pairs, &self.probes);
        let answered = probes.directions.iter().filter(|direction| direction.received > 0).count();
        report.check(answered == pairs, format!("{when}: {answered} of {pairs} directions answered"));
        if !probes.invalid.is_empty() {
            let (why, lost) = (&probes.invalid, probes.lost);
            report.proves_nothing(format!("{when}: the measurement proves nothing: {why:?}, {lost} lost"));
            return;
        }
        let lossy = probes.directions.iter().filter(|direction| direction.lost > 0);
        let lossy: Vec<_> = lossy.map(|it| format!("{} → {}: {}", it.from, it.to, it.lost)).collect();
        report.check(
            probes.lost == 0,
            format!("{when}: {} of {} probes lost {lossy:?}", probes.lost, probes.sent),
        );
        report.check(probes.duplicated == 0, format!("{when}: {} probes duplicated", probes.duplicated));
    }

    /// The probes prove something, and none was lost between nodes other than this one.
    pub fn check_bystanders(&self, report: &mut Report, concerned: &str) -> u64 {
        let (when, probes) = (&self.when, &self.probes);
        let others = probes.directions.iter().filter(|it| it.from != concerned && it.to != concerned);
        let lost: u64 = others.map(|it| u64::from(it.lost)).sum();
        report.check(probes.sent > 0, format!("{when}: there was traffic"));
        if probes.invalid.is_empty() {
            report.check(lost == 0, format!("{when}: {lost} lost between the others"));
        } else {
            report.proves_nothing(format!("{when}: the measurement proves nothing: {:?}", probes.invalid));
        }
        lost
    }

    /// Each probe was seen as ESP, and nothing in the clear.
    pub fn check_encrypted(&self, report: &mut Report) {
        let (when, esp, sent) = (&self.when, self.wire.esp, self.probes.sent);
        report.check(
            sent > 0 && esp >= sent,
            format!("{when}: {esp} ESP packets on the wire for {sent} probes"),
        );
        self.check_not_in_the_clear(report);
    }

    /// There was ESP, and nothing in the clear: for events that probes may get lost in.
    pub fn check_not_in_the_clear(&self, report: &mut Report) {
        let (when, clear) = (&self.when, self.captured.in_the_clear());
        report.check(self.wire.esp > 0, format!("{when}: there was encrypted traffic"));
        report.check(
            self.wire.ipip == 0,
            format!("{when}: {} packets in the clear: {clear:?}", self.wire.ipip),
        );
    }

    /// The longest silence is not far from that without the event: not much more than half as long again.
    pub fn check_gap(&self, report: &mut Report, baseline: &Summary) {
        let limit = 3 * baseline.longest_gap_ms / 2 + NOISE.as_millis() as u64;
        let (when, gap) = (&self.when, self.probes.longest_gap_ms);
        let shows_nothing = !self.probes.invalid.is_empty() || !baseline.invalid.is_empty();
        report.check(
            gap <= limit || shows_nothing,
            format!("{when}: longest gap {gap} ms, at most {limit} ms allowed"),
        );
        let (late, paused) = (self.probes.sender_late_ms, self.probes.receiver_paused_ms);
        note(format!(
            "{when}: gap {gap} ms (before: {before} ms); senders were up to {late} ms late, receivers stood still for up to {paused} ms",
            before = baseline.longest_gap_ms
        ));
    }
}
