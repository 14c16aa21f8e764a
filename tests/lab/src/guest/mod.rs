//! What runs inside a guest as process 1: this program, started by the guest's kernel.

mod init;
mod modules;
mod serve;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::Args;

pub use init::main;

/// Arguments that the host puts on the kernel's command line.
#[derive(Debug, Clone, Args)]
pub struct GuestArgs {
    /// The guest's name.
    #[arg(long)]
    pub hostname: String,
    /// Address of the first interface; the other end of its network is `gateway`.
    #[arg(long)]
    pub address: Ipv4Addr,
    /// Prefix length of that address.
    #[arg(long)]
    pub prefix: u8,
    /// Where everything else is sent.
    #[arg(long)]
    pub gateway: Option<Ipv4Addr>,
    /// Host directory with the kernel's modules.
    #[arg(long)]
    pub modules: PathBuf,
    /// Directories that become empty, writable memory.
    #[arg(long)]
    pub scratch: Vec<PathBuf>,
    /// Host directories that are seen although memory covers the place that they are in.
    #[arg(long)]
    pub kept: Vec<PathBuf>,
    /// Directories that become writable memory with a copy of what is there.
    #[arg(long)]
    pub copied: Vec<PathBuf>,
    /// Host directories to be seen in the guest: `HOSTDIR:GUESTDIR`, read and write.
    #[arg(long)]
    pub share: Vec<String>,
}
