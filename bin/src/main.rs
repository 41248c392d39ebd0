//! The `spegel` command: flags, configuration, wiring, signals.

mod cli;
mod go_duration;
mod listen;

fn main() {
    let _ = cli::parse(std::env::args_os());
}
