//! Commands for a person: they ask the running manager, and follow what becomes of it.

pub mod follow;
pub mod rotate;
