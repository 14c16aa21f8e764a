//! Why the state directory can't be used.

use std::io;

/// Why the directory can't be used. [`Self::reason`] is what the agent reports.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// What is written there would outlive the boot, or the agent alone has it.
    #[error(
        "{path} is not a mounted tmpfs ({found}): identity and journal are kept in memory; mount the host's {path}"
    )]
    NotTmpfs {
        /// The directory.
        path: String,
        /// What it is.
        found: String,
    },
    /// The lock is held.
    #[error("another agent runs on this node: it holds the lock on {path}")]
    AnotherAgentRuns {
        /// The directory.
        path: String,
    },
    /// No room.
    #[error("{file}: no space left on the tmpfs; free space on it")]
    Full {
        /// The file.
        file: String,
    },
    /// It is there, and what it says is not known.
    #[error("failed to read {file}: {source}")]
    Unreadable {
        /// The file or directory.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// It can't be written, and there is room.
    #[error("failed to write {file}: {source}")]
    Unwritable {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// Another agent may have begun with what is there now: this one must end.
    #[error(
        "{file} was removed or replaced while the agent ran; the agent ends, its successor begins with what is there"
    )]
    Replaced {
        /// The file or directory.
        file: String,
    },
}

impl StateError {
    /// The reason under which it is reported.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotTmpfs { .. } => "StateDirectoryVolatile",
            Self::AnotherAgentRuns { .. } => "AnotherAgentRuns",
            Self::Full { .. } => "StateDirectoryFull",
            Self::Unreadable { .. } => "StateDirectoryUnreadable",
            Self::Unwritable { .. } => "StateDirectoryUnwritable",
            Self::Replaced { .. } => "StateDirectoryReplaced",
        }
    }
}
