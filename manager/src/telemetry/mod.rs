//! What the manager says of itself: metrics, and what goes into log and Events.

pub mod metrics;
pub mod reporter;
