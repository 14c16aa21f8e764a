//! Whether the end of this process, or what the API shows of our DaemonSet, is a removal of encryption.

pub mod lifecycle;
pub mod mark;
pub mod removal;
