//! What is printed, and how.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use anyhow::Context;
use secureoverlay_kubectl_core::table::Style;
use serde::Serialize;

use crate::cli::Output;

/// Prints to standard output. Where that was closed, as by `head`, there is nothing more to do.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("failed to write to standard output"),
    }
}

/// Prints a document, or what a person reads.
pub fn document(
    output: Output,
    document: &impl Serialize,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    print(&match output {
        Output::Table | Output::Wide => text(),
        Output::Json => serde_json::to_string_pretty(document).context("writing JSON")? + "\n",
        Output::Yaml => serde_saphyr::to_string(document).context("writing YAML")?,
    })
}

/// Whether standard output is a terminal that can redraw a line.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Colours on a terminal only, and not where NO_COLOR is set.
pub fn style() -> Style {
    let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Style { colour: is_terminal() && !refused }
}
