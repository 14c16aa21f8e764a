//! The exec server of a guest: one connection, one command.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::exec::{PORT, Request, read_frame, tag, write_frame};

/// Exit status when the command could not be started, as in a shell.
const CANNOT_START: i32 = 127;

/// Serves until the guest ends.
pub fn main() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listening for commands")?;
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            if let Err(error) = serve(&stream) {
                eprintln!("exec server: {error:#}");
            }
        });
    }
    Ok(())
}

fn serve(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true).context("setting up the connection")?;
    let (kind, body) = match read_frame(stream) {
        Ok(frame) => frame,
        // A client that only wanted to know whether this guest is up.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => return Err(error).context("reading the request"),
    };
    ensure!(kind == tag::REQUEST, "expected a request");
    let request: Request = serde_json::from_slice(&body).context("reading the request")?;
    let mut child = match start(&request) {
        Ok(child) => child,
        Err(error) => {
            write_frame(stream, tag::STDERR, format!("{error:#}\n").as_bytes())?;
            return Ok(write_frame(stream, tag::EXIT, &CANNOT_START.to_be_bytes())?);
        }
    };
    let group = Pid::from_raw(i32::try_from(child.id()).context("a pid out of range")?);
    let to_client = Arc::new(Mutex::new(stream.try_clone().context("sharing the connection")?));
    let pumps: Vec<_> = [
        child.stdout.take().map(|out| pump(out, tag::STDOUT, Arc::clone(&to_client))),
        child.stderr.take().map(|err| pump(err, tag::STDERR, Arc::clone(&to_client))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let stdin = child.stdin.take();
    let from_client = stream.try_clone().context("sharing the connection")?;
    let running = Arc::new(AtomicBool::new(true));
    let watched = Arc::clone(&running);
    thread::spawn(move || feed(&from_client, stdin, group, &watched));
    let status = child.wait().context("waiting for the command")?;
    running.store(false, Ordering::SeqCst);
    for pump in pumps {
        drop(pump.join());
    }
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    if let Ok(mut stream) = to_client.lock() {
        write_frame(&mut *stream, tag::EXIT, &code.to_be_bytes())?;
    }
    Ok(())
}

fn start(request: &Request) -> Result<Child> {
    let (program, arguments) = request.argv.split_first().context("no command given")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(request.cwd.as_deref().unwrap_or("/"))
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(env) = &request.env {
        command.env_clear().envs(env.iter().map(|(k, v)| (k, v)));
    }
    command.spawn().with_context(|| format!("cannot start {program}"))
}

fn pump(mut from: impl Read + Send + 'static, tag: u8, to: Arc<Mutex<TcpStream>>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let Ok(mut stream) = to.lock() else { return };
            if write_frame(&mut *stream, tag, &buffer[..count]).is_err() {
                return;
            }
        }
    })
}

/// Passes standard input on; a client that goes away takes its command with it.
fn feed(from: &TcpStream, mut stdin: Option<ChildStdin>, group: Pid, running: &AtomicBool) {
    loop {
        match read_frame(from) {
            Ok((tag::STDIN, data)) if data.is_empty() => stdin = None,
            Ok((tag::STDIN, data)) => {
                if stdin.as_mut().is_some_and(|pipe| pipe.write_all(&data).is_err()) {
                    stdin = None;
                }
            }
            Ok(_) => {}
            Err(_) => {
                // What a command left in the background when it ended is meant to stay.
                if running.load(Ordering::SeqCst) {
                    let _ = killpg(group, Signal::SIGKILL);
                }
                return;
            }
        }
    }
}
