//! The seam to the kernel: what the agent asks of it, and how that can fail.

use std::fmt;

use crate::xfrm::{Actual, Op};

/// What holds SAs and policies: the kernel, or a model of it in tests and in the simulator.
pub trait Kernel {
    /// A request, or a whole dump, that did not come to an end.
    type Error: fmt::Display;

    /// All in and out policies and all ESP SAs, ours and foreign.
    ///
    /// # Errors
    /// The kernel can't be asked or refuses, or its answer can't be read. Nothing is returned by halves.
    fn dump(&mut self) -> Result<Actual, Self::Error>;

    /// How many SAs and policies there are; `None` where that can't be told without a dump.
    ///
    /// # Errors
    /// The kernel can't be asked, or its answer can't be read.
    fn counts(&mut self) -> Result<Option<Counts>, Self::Error> {
        Ok(None)
    }

    /// Carries out `ops`, which must not depend on each other, and returns the result of each in the same order. A
    /// failure does not keep the others from being tried. Deleting what is gone already succeeds.
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>>;
}

/// The numbers of SAs and of in and out policies in the network namespace, ours and foreign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// SAs of every protocol.
    pub sas: u32,
    /// Policies, without forward and socket policies.
    pub policies: u32,
}

impl Counts {
    /// Takes an operation that was carried out.
    pub const fn note(&mut self, done: &Op) {
        match done {
            Op::AddSa(_) => self.sas = self.sas.wrapping_add(1),
            Op::DeleteSa(_) => self.sas = self.sas.wrapping_sub(1),
            Op::AddPolicy(_) => self.policies = self.policies.wrapping_add(1),
            Op::DeletePolicy(_) => self.policies = self.policies.wrapping_sub(1),
            Op::UpdatePolicy(_) => {}
        }
    }
}

/// One operation that failed, and why. Never contains key material.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {detail}")]
pub struct OpError {
    /// What was being done, to what.
    pub what: String,
    /// The kind of failure, for counting and deciding.
    pub kind: OpErrorKind,
    /// What the kernel said and what to do about it.
    pub detail: String,
}

/// What a failure means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpErrorKind {
    /// NET_ADMIN is missing: nothing will work.
    NotPermitted,
    /// A foreign object has the same identity. It was not touched.
    Foreign,
    /// An object of ours is there already: the dump that led here is out of date.
    Exists,
    /// The kernel lacks a module.
    Unsupported,
    /// Whether it was done is not known: dump again.
    Unknown,
    /// Anything else.
    Refused,
}

impl OpErrorKind {
    /// The kind's name in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotPermitted => "not_permitted",
            Self::Foreign => "foreign",
            Self::Exists => "exists",
            Self::Unsupported => "unsupported",
            Self::Unknown => "unknown",
            Self::Refused => "refused",
        }
    }
}
