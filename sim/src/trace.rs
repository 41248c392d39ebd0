//! What happened, one line for each input and output, and a hash over all lines that must be
//! the same each time a seed is run.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use spegel_core::{Compared, Input, Output, PeerId, Reply, Request};

/// Lines shown when a scenario fails.
const TAIL_LINES: usize = 60;

/// How the text of a peer ID begins, and its length.
const PEER_PREFIX: &str = "12D3KooW";
const PEER_CHARS: usize = 52;

/// The trace of one run, shared by its nodes; `None` when nobody reads it.
#[derive(Clone, Debug)]
pub struct Trace(Option<Arc<Mutex<Lines>>>);

#[derive(Debug, Default)]
struct Lines {
    names: Names,
    hash: Sha256,
    /// Whether all lines are kept.
    is_whole: bool,
    kept: VecDeque<String>,
    ended_at: Duration,
}

/// What peers are called here.
#[derive(Debug, Default)]
struct Names {
    by_peer: BTreeMap<PeerId, String>,
    by_text: BTreeMap<String, String>,
}

impl Trace {
    /// A trace that keeps all lines.
    #[must_use]
    pub fn whole() -> Self {
        Self(Some(Arc::new(Mutex::new(Lines { is_whole: true, ..Lines::default() }))))
    }

    /// A trace that keeps the last lines and the hash of all.
    #[must_use]
    pub fn end() -> Self {
        Self(Some(Arc::default()))
    }

    /// No trace, for runs so large that writing it would take most of the time.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Calls a peer by its node's name from here on.
    pub fn name(&self, peer: PeerId, name: &str) {
        let Some(mut lines) = self.lines() else { return };
        let names = &mut lines.names;
        names.by_peer.insert(peer, name.to_owned());
        names.by_text.insert(peer.to_string(), name.to_owned());
    }

    /// Notes what reached a node.
    pub fn input(&self, at: Duration, node: &str, input: &Input) {
        let Some(mut lines) = self.lines() else { return };
        let what = describe_input(&lines.names, input);
        lines.add(at, node, "<-", &what);
    }

    /// Notes what a node wants done.
    pub fn output(&self, at: Duration, node: &str, output: &Output) {
        let Some(mut lines) = self.lines() else { return };
        let what = describe_output(&lines.names, output);
        lines.add(at, node, "->", &what);
    }

    /// Notes something the scenario does or sees.
    pub fn note(&self, at: Duration, node: &str, what: &str) {
        if let Some(mut lines) = self.lines() {
            lines.add(at, node, "--", what);
        }
    }

    fn lines(&self) -> Option<MutexGuard<'_, Lines>> {
        Some(self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A hash over all lines so far.
    #[must_use]
    pub fn hash(&self) -> String {
        let Some(lines) = self.lines() else { return String::new() };
        lines.hash.clone().finalize().iter().take(8).fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
            text
        })
    }

    /// All lines kept.
    #[must_use]
    pub fn text(&self) -> String {
        let Some(lines) = self.lines() else { return String::new() };
        lines.kept.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self) -> String {
        let Some(lines) = self.lines() else { return String::new() };
        let skipped = lines.kept.len().saturating_sub(TAIL_LINES);
        lines.kept.iter().skip(skipped).map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// When the last line was written.
    #[must_use]
    pub fn ended_at(&self) -> Duration {
        self.lines().map_or(Duration::ZERO, |lines| lines.ended_at)
    }
}

impl Lines {
    fn add(&mut self, at: Duration, node: &str, direction: &str, what: &str) {
        let mut line = format!("{:>10.3}s {node:<8} {direction} {what}", at.as_secs_f64());
        let mut from = 0;
        while let Some(found) = line[from..].find(PEER_PREFIX) {
            let start = from + found;
            from = start + PEER_PREFIX.len();
            let end = start + PEER_CHARS;
            if let Some(name) = line.get(start..end).and_then(|text| self.names.by_text.get(text)) {
                line.replace_range(start..end, name);
                from = start + name.len();
            }
        }
        self.hash.update(line.as_bytes());
        self.ended_at = at;
        if !self.is_whole && self.kept.len() == TAIL_LINES {
            self.kept.pop_front();
        }
        self.kept.push_back(line);
    }
}

impl Names {
    fn of(&self, peer: &PeerId) -> &str {
        self.by_peer.get(peer).map_or("a stranger", String::as_str)
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all others are readable as they are")]
fn describe_input(names: &Names, input: &Input) -> String {
    match input {
        Input::MessageReceived { from, exchange, message } => {
            format!(
                "MessageReceived {{ from: {}, exchange: {exchange}, {} }}",
                names.of(from),
                request(message)
            )
        }
        Input::ReplyReceived { exchange, message } => {
            format!("ReplyReceived {{ exchange: {exchange}, {} }}", reply(message))
        }
        Input::Listed(listing) => {
            format!("Listed {{ images: {}, contents: {} }}", listing.images.len(), listing.contents.len())
        }
        Input::ManifestRead { digest, outcome: spegel_core::ManifestRead::Bytes(bytes) } => {
            format!("ManifestRead {{ {digest}, {} bytes }}", bytes.len())
        }
        _ => format!("{input:?}"),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all others are readable as they are")]
fn describe_output(names: &Names, output: &Output) -> String {
    match output {
        Output::Send { to, exchange, message, .. } => {
            format!("Send {{ to: {}, exchange: {exchange}, {} }}", names.of(to), request(message))
        }
        Output::Reply { exchange, message } => {
            format!("Reply {{ exchange: {exchange}, {} }}", reply(message))
        }
        _ => format!("{output:?}"),
    }
}

fn request(message: &[u8]) -> String {
    match Request::decode(message) {
        Ok(Request::Swim(packet)) => format!("Swim({} bytes)", packet.len()),
        Ok(request) => format!("{request:?}"),
        Err(error) => format!("{} bytes: {error}", message.len()),
    }
}

fn reply(message: &[u8]) -> String {
    match Reply::decode(message) {
        Ok(Reply::Swim(packet)) => format!("Swim({} bytes)", packet.len()),
        Ok(Reply::Compared(Compared { agrees, complete, more, page })) => format!(
            "Compared {{ agrees: {agrees}, complete: {complete}, more: {more}, {} bytes }}",
            page.len()
        ),
        Ok(reply) => format!("{reply:?}"),
        Err(error) => format!("{} bytes: {error}", message.len()),
    }
}
