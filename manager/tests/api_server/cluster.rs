//! The API server under test, and one test's turn with it.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Node, Secret, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use secureoverlay_k8s::names::{NAMESPACE, SECRET};
use secureoverlay_keyring::keyring::KeyRing;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep},
};

/// The ServiceAccounts.
pub const AGENT: &str = "ucp-secureoverlay-agent";
pub const MANAGER: &str = "ucp-secureoverlay-mgr";

static TURN: Mutex<()> = Mutex::const_new(());

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manifest {
    Ours,
    Mke,
}

impl Manifest {
    pub const BOTH: [Self; 2] = [Self::Ours, Self::Mke];

    fn text(self) -> &'static str {
        match self {
            Self::Ours => include_str!("../../../manifests/ucp-secureoverlay.yaml"),
            Self::Mke => include_str!("../../../manifests/mke-original.yaml"),
        }
    }
}

/// The cluster without any object of ours.
pub struct Cluster {
    pub admin: Client,
    config: Config,
    kubeconfig: Kubeconfig,
    directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    pub async fn fresh() -> Self {
        let turn = TURN.lock().await;
        assert!(
            std::env::var_os("KUBECONFIG").is_some(),
            "KUBECONFIG must name the API server under test: run `make api-tests`"
        );
        let kubeconfig = Kubeconfig::read().unwrap();
        let config =
            Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default()).await.unwrap();
        let admin = Client::try_from(config.clone()).unwrap();
        let nodes = Api::<Node>::all(admin.clone()).list(&ListParams::default().limit(1)).await.unwrap();
        assert!(
            nodes.items.is_empty(),
            "this cluster has nodes; these tests delete and make keys, and refuse to"
        );
        let cluster = Self { admin, config, kubeconfig, directory: TempDir::new().unwrap(), _turn: turn };
        cluster.delete(Manifest::Ours);
        cluster
    }

    /// kubectl, with `input`; its output.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        self.kubectl_with_errors(arguments, input).0
    }

    /// `kubectl apply` of what is to be taken without a warning; its output.
    pub fn apply_unwarned(&self, input: &str) -> String {
        let (text, errors) = self.kubectl_with_errors(&["apply", "--warnings-as-errors", "-f", "-"], input);
        assert_eq!(errors, "", "kubectl apply: {text}");
        text
    }

    fn kubectl_with_errors(&self, arguments: &[&str], input: &str) -> (String, String) {
        let mut child = Command::new("kubectl")
            .arg(format!("--cache-dir={}", self.directory.path().display()))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is in the PATH");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (text, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "kubectl {arguments:?}: {text}{errors}");
        (text, errors)
    }

    fn text(&self, manifest: Manifest) -> String {
        let served = self.kubectl(&["api-versions"], "");
        if served.contains("rbac.authorization.k8s.io/v1beta1") {
            return manifest.text().to_owned();
        }
        // The same rights, in the words of an API server from 1.22 on.
        manifest.text().replace("rbac.authorization.k8s.io/v1beta1", "rbac.authorization.k8s.io/v1")
    }

    /// Today's API servers have nothing to warn of in ours; MKE's is as it is.
    pub fn apply(&self, manifest: Manifest) -> String {
        match manifest {
            Manifest::Ours => self.apply_unwarned(&self.text(manifest)),
            Manifest::Mke => self.kubectl(&["apply", "-f", "-"], &self.text(manifest)),
        }
    }

    pub fn delete(&self, manifest: Manifest) {
        self.kubectl(&["delete", "--ignore-not-found", "--wait=false", "-f", "-"], &self.text(manifest));
        // A definition goes after its objects; one that is on its way out would take back what is applied next.
        let definitions = ["encryptionpeers", "nodeencryptions", "clusterencryptions", "keyrotations"]
            .map(|plural| format!("customresourcedefinitions/{plural}.secureoverlay.io"));
        let names: Vec<&str> = definitions.iter().map(String::as_str).collect();
        self.kubectl(&[&["delete", "--ignore-not-found"], &names[..]].concat(), "");
    }

    /// A client with the rights of a ServiceAccount.
    pub fn as_account(&self, account: &str) -> Client {
        let mut config = self.config.clone();
        config.auth_info.impersonate = Some(format!("system:serviceaccount:{NAMESPACE}:{account}"));
        config.auth_info.impersonate_groups = Some(
            ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]
                .map(str::to_owned)
                .to_vec(),
        );
        Client::try_from(config).unwrap()
    }

    /// A client with the rights of a user.
    pub fn as_user(&self, user: &str) -> Client {
        let mut config = self.config.clone();
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(vec!["system:authenticated".to_owned()]);
        Client::try_from(config).unwrap()
    }

    /// A client with a token.
    pub fn as_token(&self, token: String) -> Client {
        let mut config = self.config.clone();
        config.auth_info = AuthInfo { token: Some(token.into()), ..AuthInfo::default() };
        Client::try_from(config).unwrap()
    }

    /// A kubeconfig with a token of a ServiceAccount, as a pod would hold.
    pub async fn account_kubeconfig(&self, account: &str) -> PathBuf {
        let request: TokenRequest = serde_json::from_value(
            json!({"metadata": {}, "spec": {"audiences": [], "expirationSeconds": 3600}}),
        )
        .unwrap();
        let token = Api::<ServiceAccount>::namespaced(self.admin.clone(), NAMESPACE)
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .unwrap();
        let mut text = serde_json::to_value(&self.kubeconfig).unwrap();
        let user = text["users"][0]["name"].clone();
        text["users"] = json!([{"name": user, "user": {"token": token.status.unwrap().token}}]);
        let file = self.directory.path().join(format!("{account}.kubeconfig"));
        fs::write(&file, text.to_string()).unwrap();
        file
    }

    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.admin.clone(), NAMESPACE)
    }

    /// The document in the Secret, as it is.
    pub async fn document(&self) -> Vec<u8> {
        let secret = self.secrets().get(SECRET).await.unwrap();
        secret.data.unwrap_or_default().remove("keys").map(|bytes| bytes.0).unwrap_or_default()
    }

    /// The ring, if it is one.
    pub async fn ring(&self) -> Option<KeyRing> {
        KeyRing::parse(&self.document().await).ok()
    }

    pub async fn set_document(&self, document: &[u8]) {
        let patch: Value = json!({"data": {"keys": BASE64.encode(document)}});
        self.secrets().patch(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    pub async fn secret_version(&self) -> String {
        self.secrets().get(SECRET).await.unwrap().metadata.resource_version.unwrap()
    }
}

/// Waits for something to come true.
pub async fn until<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = holds().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}
