//! What `kubectl secureoverlay` decides and prints, as functions of the objects that were read and of a time.
//!
//! | module | holds |
//! |---|---|
//! | [`snapshot`] | what is read of each object; a list that could not be read says why |
//! | [`assess`] | the verdict on the cluster, and each issue with the command that comes next |
//! | [`screen`] | `status`, as one screen |
//! | [`nodes`], [`history`], [`version`], [`removal`] | the other tables |
//! | [`paths`], [`checks`] | what agents say of pairs and of their nodes |
//! | [`progress`] | how a rotation goes, in a line |
//! | [`bundle`] | what of an object goes into a support bundle |
//! | [`table`], [`text`] | columns, colours, and text without control characters |
//!
//! Objects go through [`text::clean`] as a whole when they are read, so that no name or message of theirs can hold an escape
//! sequence. "Encrypted" is said only if nothing speaks against it and nothing that it rests on is missing.

pub mod assess;
pub mod bundle;
pub mod checks;
mod cluster;
pub mod history;
mod node;
pub mod nodes;
pub mod paths;
pub mod progress;
pub mod removal;
pub mod screen;
pub mod snapshot;
pub mod table;
pub mod text;
pub mod version;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything is as it should be, or was done.
    Good,
    /// Something is not as it should be.
    Finding,
    /// It could not be told, or not be done.
    Unknown,
    /// What was waited for did not happen in time.
    TimedOut,
}

impl Exit {
    /// The exit status of the process. Usage errors have 64.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Finding => 1,
            Self::Unknown => 2,
            Self::TimedOut => 3,
        }
    }
}
