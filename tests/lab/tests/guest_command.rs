//! `lab kernel`, with a real guest: needs root, and the network the first time. `make kernel-tests` runs it; it fails
//! elsewhere, so plain `cargo test` leaves it out.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn in_guest(script: &str, stdin: &str) -> Output {
    in_guest_from(Path::new("."), &["sh", "-c", script], stdin)
}

fn in_guest_from(directory: &Path, command: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["kernel", "--mem", "256M", "--"])
        .args(command)
        .current_dir(directory)
        .env("GREETING", "hello")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_command_keeps_its_streams_status_directory_and_environment() {
    let out = in_guest("cat; echo $GREETING; pwd; echo oops >&2; exit 7", "typed\n");
    let here = std::env::current_dir().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), format!("typed\nhello\n{}\n", here.display()));
    assert!(String::from_utf8_lossy(&out.stderr).ends_with("oops\n"));
    assert_eq!(out.status.code(), Some(7));
    let killed = in_guest("kill -9 $$", "");
    assert_eq!(killed.status.code(), Some(137));
}

#[test]
fn host_files_are_read_only() {
    let out = in_guest("test -r /etc/passwd && echo read; touch /etc/secureoverlay-lab-was-here", "");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "read\n");
    assert_ne!(out.status.code(), Some(0));
    assert!(!Path::new("/etc/secureoverlay-lab-was-here").exists());
}

/// A checkout, or builds, may be there.
#[test]
fn a_directory_in_tmp_is_seen_and_read_only_and_the_rest_is_the_guests_own() {
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let program = directory.path().join("program");
    fs::write(&program, "#!/bin/sh\npwd; ls; ls -A /tmp | wc -l; touch /tmp/new; touch new\n").unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let out = in_guest_from(directory.path(), &[program.to_str().unwrap()], "");
    let wanted = format!("{}\nprogram\n1\n", directory.path().display());
    assert_eq!(String::from_utf8_lossy(&out.stdout), wanted, "{}", String::from_utf8_lossy(&out.stderr));
    assert_ne!(out.status.code(), Some(0));
    assert!(!directory.path().join("new").exists() && !Path::new("/tmp/new").exists());
}

/// The reason for all this: the kernel has what SecureOverlay needs.
#[test]
fn the_kernel_has_esp_with_short_tags_over_ipip() {
    let script = r"
        set -e
        ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x1234 reqid 7 mode transport \
            replay-window 64 flag esn aead 'rfc4106(gcm(aes))' 0x$(printf '%040d' 5) 64
        ip xfrm policy add src 10.0.0.1 dst 10.0.0.2 proto 4 dir out \
            tmpl proto esp spi 0x1234 reqid 7 mode transport
        ip link show tunl0
        test ! -e /proc/modules || ! grep esp4_offload /proc/modules
        ip xfrm state list | grep -c ' 64$'
    ";
    let out = in_guest(script, "");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stdout).ends_with("\n1\n"));
}
