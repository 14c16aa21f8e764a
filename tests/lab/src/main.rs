//! `cargo lab`: see `tests/lab/README.md`.

fn main() -> std::process::ExitCode {
    secureoverlay_lab::cli::main()
}
