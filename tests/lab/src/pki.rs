//! The cluster's certificates, made anew for every lab and valid for no other.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use crate::network;

/// The cluster's authority, and where its files are.
pub struct Pki {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Makes an authority, and the files that the control plane needs, in `directory`.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
            .context("closing the pki directory")?;
        let key = KeyPair::generate().context("making the authority's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "secureoverlay-lab");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).context("signing the authority")?;
        let this = Self { directory: directory.to_owned(), issuer: Issuer::new(params, key) };
        this.write("ca.crt", &certificate.pem())?;
        let account = KeyPair::generate().context("making the service account key")?;
        this.write("sa.key", &account.serialize_pem())?;
        this.write("sa.pub", &account.public_key_pem())?;
        this.api_server()?;
        this.client_files("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"))?;
        Ok(this)
    }

    /// Path of a file of this authority.
    pub fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Writes a kubeconfig for a user with these names in its certificate.
    pub fn kubeconfig(&self, file: &Path, user: &str, group: Option<&str>) -> Result<()> {
        let (certificate, key) = self.client(user, group)?;
        let authority = fs::read_to_string(self.path("ca.crt")).context("reading ca.crt")?;
        // JSON is YAML, and nothing needs quoting by hand.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{}", network::SERVICE),
                "certificate-authority-data": base64(authority.as_bytes()),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": base64(certificate.as_bytes()),
                "client-key-data": base64(key.as_bytes()),
            }}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        });
        write_private(file, &config.to_string())
    }

    fn api_server(&self) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"] {
            params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(name).context("a DNS name")?));
        }
        for ip in [network::SERVICE, network::HOST, Ipv4Addr::LOCALHOST] {
            params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(ip)));
        }
        let key = KeyPair::generate().context("making the API server's key")?;
        let certificate = params.signed_by(&key, &self.issuer).context("signing the API server")?;
        self.write("apiserver.crt", &certificate.pem())?;
        self.write("apiserver.key", &key.serialize_pem())
    }

    fn client(&self, user: &str, group: Option<&str>) -> Result<(String, String)> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().with_context(|| format!("making the key of {user}"))?;
        let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("signing {user}"))?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn client_files(&self, name: &str, user: &str, group: Option<&str>) -> Result<()> {
        let (certificate, key) = self.client(user, group)?;
        self.write(&format!("{name}.crt"), &certificate)?;
        self.write(&format!("{name}.key"), &key)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        write_private(&self.directory.join(name), text)
    }
}

fn write_private(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("closing {}", file.display()))
}

fn base64(data: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(data)
}
