//! What the agent asks and tells the API server and its machine: thin, and without decisions.

pub mod announcer;
pub mod nodes;
pub mod refusal;
pub mod ring;
pub mod vm_generation;

#[cfg(test)]
mod testing;
