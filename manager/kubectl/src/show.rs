//! The commands that only look.

use std::time::Duration;

use jiff::Timestamp;
use secureoverlay_kubectl_core::{
    Exit, history,
    nodes::{self, rows},
    removal::Removal,
    screen,
    snapshot::Rotation,
    text::clean,
    version::Versions,
};
use serde_json::json;

use crate::{
    api::{Api, Kind},
    cli::{NodesArgs, Output, StatusArgs},
    fetch,
    output::{self, document, print},
};

/// Between two looks of `--watch`.
const AGAIN: Duration = Duration::from_secs(5);

pub async fn status(api: &Api, args: &StatusArgs) -> anyhow::Result<Exit> {
    let mut before = String::new();
    loop {
        let (snapshot, assessment) = fetch::assessed(api).await;
        let exit = assessment.exit();
        let text = || screen::screen(&snapshot, &assessment, output::style());
        if !args.watch {
            document(args.output.output, &screen::document(&snapshot, &assessment), text)?;
            return Ok(exit);
        }
        if matches!(args.output.output, Output::Json | Output::Yaml) {
            document(args.output.output, &screen::document(&snapshot, &assessment), text)?;
        } else if output::is_terminal() {
            print(&format!("\x1b[H\x1b[2J{}\n", text()))?;
        } else if assessment.headline != before {
            // Times in the screen change with each look; a log is to hold what has changed.
            print(&format!("{}\n{}\n", snapshot.now, text()))?;
            before.clone_from(&assessment.headline);
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            _ = tokio::signal::ctrl_c() => return Ok(exit),
        }
    }
}

pub async fn nodes(api: &Api, args: &NodesArgs) -> anyhow::Result<Exit> {
    let (snapshot, assessment) = fetch::assessed(api).await;
    let (rows, exit) = rows(&snapshot, &assessment, args.problems);
    let wide = args.output.output == Output::Wide;
    document(args.output.output, &rows, || nodes::text(&rows, wide))?;
    let errors =
        [snapshot.nodes.as_ref().err(), snapshot.reports.as_ref().err(), snapshot.agents.as_ref().err()];
    for error in errors.into_iter().flatten() {
        eprintln!("could not tell: {}", clean(error));
    }
    Ok(exit)
}

pub async fn history(api: &Api, output: Output) -> anyhow::Result<Exit> {
    let all: Vec<Rotation> = api.list(Kind::KeyRotation, "").await.map_err(anyhow::Error::msg)?;
    let (table, exit) = history::history(&all, Timestamp::now(), output == Output::Wide);
    let documents: Vec<_> = all
        .iter()
        .map(|it| {
            let status = it.status.as_ref().ok();
            json!({"name": it.name, "created": it.created, "result": history::result(it), "spec": it.spec, "status": status})
        })
        .collect();
    document(output, &documents, || table)?;
    Ok(exit)
}

pub async fn version(api: &Api, output: Output) -> anyhow::Result<Exit> {
    let snapshot = fetch::snapshot(api).await;
    let versions = Versions::of(&snapshot, env!("CARGO_PKG_VERSION"));
    document(output, &versions, || versions.text())?;
    Ok(versions.exit())
}

pub async fn uninstall(api: &Api, output: Output) -> anyhow::Result<Exit> {
    let snapshot = fetch::snapshot(api).await;
    let removal = Removal::of(&snapshot);
    document(output, &removal, || removal.text())?;
    Ok(removal.exit())
}
