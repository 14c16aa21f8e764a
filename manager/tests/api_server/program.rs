//! The manager as a program of its own, with the token of its ServiceAccount.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use crate::cluster::until;

pub struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    addr: SocketAddr,
}

impl Program {
    /// Rotates every `interval`, steps `delay` apart.
    pub async fn start(kubeconfig: &Path, interval: &str, delay: &str) -> Self {
        let timed =
            ["--rotation-mode", "timed", "--minimum-rotation-interval", "0s", "--propagation-delay", delay];
        Self::with(kubeconfig, &[&["--rotation-interval", interval], &timed[..]].concat()).await
    }

    /// With these flags.
    pub async fn with(kubeconfig: &Path, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ucp-secureoverlay-mgr"))
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .env("SECUREOVERLAY_LOG", "trace")
            .env("SECUREOVERLAY_LOG_FORMAT", "json")
            .env("SECUREOVERLAY_METRICS_BIND_ADDRESS", "127.0.0.1:0")
            .env("SECUREOVERLAY_POLL_INTERVAL", "100ms")
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, sink) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| sink.lock().unwrap().push(line)));
        let addr = until("the program says where it listens", async || {
            let lines = log.lock().unwrap();
            lines.iter().find_map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).ok()?;
                line["address"].as_str()?.parse().ok()
            })
        })
        .await;
        Self { child, log, addr }
    }

    /// Everything it has said.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// A page of its HTTP server, head included.
    pub fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// A metric without labels, `secureoverlay_manager_` left out.
    pub fn metric(&self, name: &str) -> i64 {
        let page = self.page("/metrics");
        let line = format!("secureoverlay_manager_{name} ");
        let value = page.lines().find_map(|text| text.strip_prefix(&line));
        value.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
    }

    /// SIGTERM; what it ends with.
    pub async fn stop(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        let status = until("the program ends", async || self.child.try_wait().unwrap()).await;
        (status.code(), self.log())
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the manager's log:\n{}", self.log());
        }
    }
}
