//! Container images without Docker or a registry: an image is a tar that containerd imports.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

/// A file in an image.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A copy of a host file.
    File(PathBuf),
    /// A symbolic link to this.
    Link(String),
    /// An empty directory.
    Directory,
}

/// An image as it is described.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Repository and tag.
    pub reference: String,
    /// Paths without a leading slash, in the order of creation.
    pub content: Vec<(String, Entry)>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// `uid:gid`, or empty for root.
    pub user: String,
}

impl Image {
    /// The same image under another reference, with more environment.
    pub fn derive(&self, reference: &str, env: &[&str]) -> Self {
        let mut image = self.clone();
        reference.clone_into(&mut image.reference);
        image.env.extend(env.iter().map(ToString::to_string));
        image
    }

    /// Writes the image into `directory` and returns its path, whose name holds a hash of the content; says
    /// whether it was there already. An older image of the same reference is removed.
    pub fn write(&self, directory: &Path) -> Result<(PathBuf, bool)> {
        let (tar, hash) = self.tar()?;
        let name = self.reference.rsplit('/').next().unwrap_or("image").replace(':', "-");
        let path = directory.join(format!("{name}@{}.tar", &hash[..16]));
        if path.exists() {
            return Ok((path, true));
        }
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        for old in fs::read_dir(directory).context("reading the image directory")?.flatten() {
            if old.file_name().to_string_lossy().starts_with(&format!("{name}@")) {
                fs::remove_file(old.path()).with_context(|| format!("removing {}", old.path().display()))?;
            }
        }
        // Guests may look at any moment: a half-written file must not have the final name.
        let partial = directory.join(format!(".{name}.partial"));
        fs::write(&partial, tar).with_context(|| format!("writing {}", partial.display()))?;
        fs::rename(&partial, &path).with_context(|| format!("writing {}", path.display()))?;
        Ok((path, false))
    }

    /// The image in the form that `docker save` made common, and the digest of its configuration.
    fn tar(&self) -> Result<(Vec<u8>, String)> {
        let layer = self.layer().with_context(|| format!("making the layer of {}", self.reference))?;
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": self.env, "User": self.user, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
            "history": [{"created_by": "secureoverlay-lab"}],
        })
        .to_string()
        .into_bytes();
        let digest = hex(&config);
        let manifest = json!([{
            "Config": format!("{digest}.json"), "RepoTags": [self.reference], "Layers": ["layer.tar"],
        }])
        .to_string()
        .into_bytes();
        let mut archive = tar::Builder::new(Vec::new());
        append(&mut archive, &format!("{digest}.json"), &config, 0o644)?;
        append(&mut archive, "layer.tar", &layer, 0o644)?;
        append(&mut archive, "manifest.json", &manifest, 0o644)?;
        Ok((archive.into_inner().context("finishing the image")?, digest))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, entry) in &self.content {
            match entry {
                Entry::File(source) => {
                    let mut data = Vec::new();
                    let mut file =
                        fs::File::open(source).with_context(|| format!("opening {}", source.display()))?;
                    file.read_to_end(&mut data).with_context(|| format!("reading {}", source.display()))?;
                    let mode = file.metadata().map_or(0o755, |m| m.permissions().mode() & 0o777);
                    append(&mut archive, path, &data, mode)?;
                }
                Entry::Link(target) => {
                    let mut header = header(0, 0o777, tar::EntryType::Symlink);
                    archive
                        .append_link(&mut header, path, target)
                        .with_context(|| format!("linking {path}"))?;
                }
                Entry::Directory => {
                    let mut header = header(0, 0o1777, tar::EntryType::Directory);
                    archive
                        .append_data(&mut header, path, std::io::empty())
                        .with_context(|| format!("adding {path}"))?;
                }
            }
        }
        archive.into_inner().context("finishing the layer")
    }
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, data: &[u8], mode: u32) -> Result<()> {
    let mut header = header(data.len() as u64, mode, tar::EntryType::Regular);
    archive.append_data(&mut header, path, data).with_context(|| format!("adding {path}"))
}

/// Without times and owners, so that equal content is an equal image.
fn header(size: u64, mode: u32, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_entry_type(kind);
    header.set_mtime(0);
    header
}

fn hex(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, "x").unwrap();
        let image = Image {
            reference: "docker.io/secureoverlay/thing:1".into(),
            content: vec![
                ("bin/program".into(), Entry::File(program.clone())),
                ("tmp".into(), Entry::Directory),
            ],
            ..Image::default()
        };
        let images = dir.path().join("images");
        let (first, known) = image.write(&images).unwrap();
        assert!(!known);
        assert_eq!(image.write(&images).unwrap(), (first.clone(), true));
        fs::write(&program, "y").unwrap();
        let (second, known) = image.write(&images).unwrap();
        assert!(!known && second != first && !first.exists());
        let (other, _) = image.derive("docker.io/secureoverlay/thing:2", &["A=b"]).write(&images).unwrap();
        assert!(second.exists() && other.exists());
    }
}
