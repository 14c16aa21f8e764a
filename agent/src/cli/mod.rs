//! Commands for a person on the node.

pub mod check;
pub mod cleanup;
