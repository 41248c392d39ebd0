//! What happened, one line for each input and output, and a hash over all lines that must be
//! the same each time a seed is run.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest as _, Sha256};
use spegel_core::{Input, Output, PeerId, Reply, Request};

/// Lines shown when a scenario fails.
const TAIL_LINES: usize = 60;

/// The trace of one run, shared by its nodes.
#[derive(Clone, Debug, Default)]
pub struct Trace(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    /// What peers are called here, by the text of their ID.
    names: BTreeMap<String, String>,
    hash: Sha256,
    all: Vec<String>,
}

impl Trace {
    /// Calls a peer by its node's name from here on.
    pub fn name(&self, peer: PeerId, name: &str) {
        self.lines().names.insert(peer.to_string(), name.to_owned());
    }

    /// Notes what reached a node.
    pub fn input(&self, node: &str, input: &Input) {
        self.line(node, "<-", &describe_input(input));
    }

    /// Notes what a node wants done.
    pub fn output(&self, node: &str, output: &Output) {
        self.line(node, "->", &describe_output(output));
    }

    /// Notes something the scenario does or sees.
    pub fn note(&self, node: &str, what: &str) {
        self.line(node, "--", what);
    }

    fn line(&self, node: &str, direction: &str, what: &str) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let mut line = format!("{:>10.3}s {node:<8} {direction} {what}", at.as_secs_f64());
        let mut lines = self.lines();
        if line.contains("12D3KooW") {
            line = lines.names.iter().fold(line, |line, (peer, name)| line.replace(peer, name));
        }
        lines.hash.update(line.as_bytes());
        lines.all.push(line);
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A hash over all lines so far.
    #[must_use]
    pub fn hash(&self) -> String {
        self.lines().hash.clone().finalize().iter().take(8).fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
            text
        })
    }

    /// All lines.
    #[must_use]
    pub fn text(&self) -> String {
        self.lines().all.join("\n")
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines = self.lines();
        lines.all[lines.all.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all others are readable as they are")]
fn describe_input(input: &Input) -> String {
    match input {
        Input::MessageReceived { from, exchange, message } => {
            format!("MessageReceived {{ from: {from}, exchange: {exchange}, {} }}", describe_request(message))
        }
        Input::ReplyReceived { exchange, message } => {
            format!("ReplyReceived {{ exchange: {exchange}, {} }}", describe_reply(message))
        }
        Input::Listed(listing) => {
            format!("Listed {{ images: {}, contents: {} }}", listing.images.len(), listing.contents.len())
        }
        _ => format!("{input:?}"),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all others are readable as they are")]
fn describe_output(output: &Output) -> String {
    match output {
        Output::Send { to, exchange, message, .. } => {
            format!("Send {{ to: {to}, exchange: {exchange}, {} }}", describe_request(message))
        }
        Output::Reply { exchange, message } => {
            format!("Reply {{ exchange: {exchange}, {} }}", describe_reply(message))
        }
        _ => format!("{output:?}"),
    }
}

fn describe_request(message: &[u8]) -> String {
    match Request::decode(message) {
        Ok(Request::Swim(packet)) => format!("Swim({} bytes)", packet.len()),
        Ok(request) => format!("{request:?}"),
        Err(error) => format!("{} bytes: {error}", message.len()),
    }
}

fn describe_reply(message: &[u8]) -> String {
    match Reply::decode(message) {
        Ok(Reply::Swim(packet)) => format!("Swim({} bytes)", packet.len()),
        Ok(reply) => format!("{reply:?}"),
        Err(error) => format!("{} bytes: {error}", message.len()),
    }
}
