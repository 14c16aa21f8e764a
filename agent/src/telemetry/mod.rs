//! What the agent says of itself: log, health, metrics, and what its NodeEncryption is to show.

pub mod ages;
pub mod heard;
pub mod metrics;
pub mod report;
pub mod status;
pub mod swap;
