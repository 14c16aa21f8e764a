//! Logs, without what libraries would give away.
//!
//! kube-client logs the whole body at WARN when an answer does not decode, and its watcher formats errors that quote
//! such a body; at finer levels HTTP libraries log headers, tokens included. So what the operator's filter lets
//! through passes a second gate: our own crates at any level, others at INFO and above, those two never. What they
//! have to say reaches our code as errors, which it reports itself.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{ParseError, filter_fn},
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

/// Targets whose events may quote the body of an answer.
const MUTE: [&str; 3] = ["kube_client::client", "kube_client::client::builder", "kube_runtime"];

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The log's flags, for a program to flatten into its own.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Log")]
pub struct Args {
    /// How a line of the log looks
    #[arg(long, env = "SECUREOVERLAY_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged: a level (error, warn, info, debug, trace), or directives such as
    /// `info,secureoverlay_agent::run=debug`
    #[arg(long, env = "SECUREOVERLAY_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is malformed.
    #[error("the log filter is malformed: {0}. Try `info` or `debug`")]
    Filter(#[from] ParseError),
    /// Called twice.
    #[error("the log was set up already: {0}")]
    Twice(#[from] TryInitError),
}

/// Sends the log to standard error from here on.
///
/// # Errors
/// A malformed filter, or a second call.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let colour = io::stderr().is_terminal();
    subscriber(format, filter, colour, io::stderr)?.try_init()?;
    Ok(())
}

fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    colour: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync, LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse(filter)?;
    let lines = match format {
        LogFormat::Text => fmt::layer().with_ansi(colour).with_writer(writer).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
    };
    Ok(tracing_subscriber::registry().with(lines.with_filter(filter_fn(may_pass)).with_filter(filter)))
}

fn may_pass(event: &Metadata<'_>) -> bool {
    let target = event.target();
    let ours = target.starts_with("secureoverlay_") || target.starts_with("ucp_secureoverlay_");
    ours || *event.level() <= Level::INFO && !MUTE.iter().any(|mute| is_or_is_in(target, mute))
}

/// `kube_client::client` itself is muted, its children (TLS, which warns of a stale CA) are not.
fn is_or_is_in(target: &str, mute: &str) -> bool {
    target == mute || mute == "kube_runtime" && target.starts_with("kube_runtime::")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use k8s_openapi::api::core::v1::Secret;
    use kube::{Api, Client, client::Body};
    use tower::service_fn;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn logged(filter: &str, format: LogFormat, events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(format, filter, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, events);
        sink.text()
    }

    #[test]
    fn an_undecodable_secret_stays_out_of_the_log() {
        let body =
            r#"{"kind":"Secret","apiVersion":"v1","metadata":{"name":"hush-name"},"data":"hush-data"}"#;
        let read = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let server = service_fn(async |_: Request<Body>| {
                    Ok::<_, std::convert::Infallible>(Response::new(Body::from(body.as_bytes().to_vec())))
                });
                let client = Client::new(server, "default");
                let error = Api::<Secret>::default_namespaced(client).get("a").await.unwrap_err();
                tracing::warn!("reading the Secret failed: {}", crate::client::describe(&error));
            });
        };
        // The same through an ungated log: proof that there is something to keep out.
        let open = Sink::default();
        let writer = open.clone();
        let ungated = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(ungated, read);
        assert!(open.text().contains("hush-data"));

        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged("trace,kube_client::client=trace", format, read);
            assert!(text.contains("reading the Secret failed") && !text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn the_filter_rules_what_may_pass_at_all() {
        let events = || {
            tracing::debug!(target: "secureoverlay_agent::run", "ours, fine");
            tracing::info!(target: "hyper", "theirs, coarse");
            tracing::debug!(target: "hyper", "theirs, fine");
            tracing::warn!(target: "kube_client::client::tls", "stale roots");
            tracing::error!(target: "kube_runtime::watcher", "quotes");
        };
        let text = logged("trace", LogFormat::Text, events);
        assert!(
            text.contains("ours, fine") && text.contains("theirs, coarse") && text.contains("stale roots")
        );
        assert!(!text.contains("theirs, fine") && !text.contains("quotes"), "{text}");
        let text = logged("warn", LogFormat::Text, events);
        assert!(text.contains("stale roots") && !text.contains("ours") && !text.contains("theirs"), "{text}");
    }

    #[test]
    fn a_malformed_filter_is_refused() {
        let error = subscriber(LogFormat::Text, "loud=very", false, io::stderr).err().unwrap();
        assert!(error.to_string().contains("Try `info`"), "{error}");
    }
}
