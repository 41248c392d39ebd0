//! Histories of a small cluster: three real nodes whose shells do whatever the bytes say, in any
//! order, at any time, with messages of each other that are lost, doubled, late or corrupted, and
//! with messages nobody sent. Each order of a node is checked as it comes (see `shell`).

mod shell;
mod vocabulary;

use std::time::{Duration, Instant};

use spegel_core::{
    Announce, AttemptId, BootstrapAddr, ExchangeId, FetchError, Fingerprint, Input, Inspection, Key, Listing,
    ManifestRead, PullId, PullKind, QuestionId, Request, oci::Digest,
};

use self::{
    shell::{BODY, Shell},
    vocabulary::{
        NODES, any_addrs, any_content, any_digest, any_image, any_name, any_peer, digest, document, ip,
        node_of, peer, router_addr,
    },
};
use crate::bytes::Bytes;

/// Most steps of one history. More and a run takes longer than what it finds is worth.
const STEPS_MAX: usize = 256;

/// By when every pull is answered if nothing more is heard of: the core's longest silence in
/// mid-body and the longest wait for another holder come to less.
const SILENCE: Duration = Duration::from_secs(10);

/// What a step may wait: nothing, the delays of hedges, probes, retries; hours when frozen.
const WAITS_MS: [u64; 8] = [0, 1, 20, 60, 300, 1100, 5000, 4_000_000];

/// Runs the history that the bytes tell. The first byte says how far the cluster has come before:
/// 1 it has formed, 2 containerd was listed, 4 everybody's content was announced.
pub fn node_inputs(data: &[u8]) {
    run(data, false);
}

/// Does the same, and gives a fingerprint of all orders of all nodes: the same for the same bytes.
pub fn node_inputs_fingerprint(data: &[u8]) -> u64 {
    run(data, true).shells.iter().filter_map(Shell::fingerprint).fold(0, |all, one| all.rotate_left(1) ^ one)
}

fn run(data: &[u8], is_compared: bool) -> World {
    let mut bytes = Bytes::new(data);
    let mut world = World::new(is_compared);
    let prelude = bytes.byte();
    if prelude & 1 != 0 {
        world.form();
    }
    if prelude & 2 != 0 {
        world.list();
    }
    if prelude & 4 != 0 {
        world.settle(2);
    }
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            break;
        }
        world.step(&mut bytes);
    }
    if world.shells.iter().any(|shell| !shell.pulls.is_empty() || !shell.questions.is_empty()) {
        world.wait(SILENCE, false);
    }
    for shell in &world.shells {
        shell.check_silence(world.now);
    }
    world
}

struct World {
    now: Instant,
    shells: Vec<Shell>,
}

impl World {
    fn new(is_compared: bool) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
        let now = Instant::now();
        Self { now, shells: (0..NODES).map(|number| Shell::new(now, number, is_compared)).collect() }
    }

    // --- before the history begins ----------------------------------------------------------

    fn form(&mut self) {
        let now = self.now;
        for number in 0..NODES {
            self.shells[number].handle(now, Input::ListenAddrsChanged { addrs: vec![ip(number)] });
            let addrs = (0..NODES).map(|other| BootstrapAddr { addr: router_addr(other), peer: None });
            self.shells[number].handle(now, Input::BootstrapResolved { addrs: addrs.collect() });
            for other in 0..NODES {
                let dialed = Input::Dialed { addr: router_addr(other), peer: peer(other) };
                self.shells[number].handle(now, dialed);
            }
        }
        self.settle(4);
    }

    /// Nodes 1 and 2 have the first image, all of them its shared blobs.
    fn list(&mut self) {
        let now = self.now;
        for (number, shell) in self.shells.iter_mut().enumerate() {
            shell.handle(now, Input::ContainerdConnected { version: "2.1.0".to_owned() });
            let held = if number == 0 { 4..5 } else { 0..8 };
            let labelled = &mut Bytes::new(&[1, 1]);
            let contents = held.clone().map(|held| vocabulary::content(digest(held), labelled)).collect();
            let images = if number == 0 { Vec::new() } else { vec![any_image(&mut Bytes::new(&[0, 0, 0]))] };
            shell.handle(now, Input::Listed(Listing { images, contents }));
            while let Some(digest) = shell.reads.pop() {
                let outcome = ManifestRead::Bytes(bytes_of(&digest));
                shell.handle(now, Input::ManifestRead { digest, outcome });
            }
        }
    }

    /// Time passes and every message arrives.
    fn settle(&mut self, rounds: u32) {
        for _ in 0..rounds {
            self.wait(Duration::from_millis(300), false);
            for number in 0..NODES {
                let exchanges: Vec<_> = self.shells[number].exchanges.keys().copied().collect();
                for exchange in exchanges {
                    self.deliver(number, exchange, 0, &mut Bytes::new(&[]));
                }
            }
        }
    }

    // --- the history --------------------------------------------------------------------------

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let what = bytes.byte();
        let number = usize::from(what >> 5) % NODES;
        match what & 0x1f {
            0..=2 => self.wait(Duration::from_millis(WAITS_MS[bytes.below(WAITS_MS.len() - 1)]), false),
            3 => self.wait(Duration::from_millis(WAITS_MS[bytes.below(WAITS_MS.len())]), true),
            4..=8 => {
                let exchanges: Vec<_> = self.shells[number].exchanges.keys().copied().collect();
                let (nth, fate) = (bytes.below(exchanges.len()), bytes.byte());
                // The newest first: what was sent last is what the history is about.
                let Some(exchange) = exchanges.iter().rev().nth(nth) else { return };
                self.deliver(number, *exchange, fate, bytes);
            }
            9 => self.settle(1),
            10..=12 => {
                let (from, message) = (any_peer(bytes), any_message(bytes));
                self.shells[number].receive(self.now, from, message);
            }
            13..=15 => self.pull(number, bytes),
            16..=20 => self.fetch(number, bytes),
            21..=29 => {
                let input = self.containerd(number, bytes);
                self.shells[number].handle(self.now, input);
            }
            _ => {
                let input = self.cluster(number, bytes);
                self.shells[number].handle(self.now, input);
            }
        }
    }

    fn wait(&mut self, duration: Duration, is_frozen: bool) {
        let to = self.now + duration;
        for shell in &mut self.shells {
            shell.advance(self.now, to, is_frozen);
        }
        self.now = to;
    }

    /// What becomes of a message that was sent.
    fn deliver(&mut self, number: usize, exchange: ExchangeId, fate: u8, bytes: &mut Bytes<'_>) {
        let Some((to, mut message)) = self.shells[number].exchanges.get(&exchange).cloned() else { return };
        let failed = Input::SendFailed { exchange, cause: "lost".to_owned() };
        // One that arrives twice, or whose reply does, stays known.
        if fate % 8 != 1 {
            self.shells[number].exchanges.remove(&exchange);
        }
        let receiver = node_of(&to).filter(|_| fate % 8 != 2);
        let Some(receiver) = receiver else { return self.shells[number].handle(self.now, failed) };
        if fate % 8 == 3 {
            corrupt(&mut message, bytes);
        }
        let from = self.shells[number].peer();
        let mut reply = self.shells[receiver].receive(self.now, from, message);
        match fate % 8 {
            4 => return self.shells[number].handle(self.now, failed),
            5 => corrupt(&mut reply, bytes),
            6 => reply = bytes.some().to_vec(),
            _ => {}
        }
        self.shells[number].handle(self.now, Input::ReplyReceived { exchange, message: reply });
    }

    fn pull(&mut self, number: usize, bytes: &mut Bytes<'_>) {
        let shell = &mut self.shells[number];
        let pull = PullId(shell.pull_next);
        shell.pull_next += 1;
        shell.pulls.insert(pull, shell::Pull::default());
        let choice = bytes.byte();
        let (key, digest) = if choice & 1 == 0 {
            let digest = any_digest(bytes);
            (Key::of_digest(&digest), Some(digest))
        } else {
            (Key::of(&any_name(bytes)), None)
        };
        let kind = [PullKind::Manifest, PullKind::Blob, PullKind::Head][usize::from(choice >> 1) % 3];
        let whole = choice & 0x80 == 0;
        shell.handle(self.now, Input::PullRequested { pull, key, digest, kind, whole });
    }

    /// What becomes of an attempt, or of a pull.
    fn fetch(&mut self, number: usize, bytes: &mut Bytes<'_>) {
        let now = self.now;
        let shell = &mut self.shells[number];
        let (what, which) = (bytes.byte(), bytes.byte());
        // The newest, an older one, or one that is over or never was.
        let nth = usize::from(which & 3);
        let id = shell.pulls.keys().rev().nth(nth).copied().unwrap_or_else(|| PullId(which.into()));
        let pull = shell.pulls.get_mut(&id);
        let nth = usize::from(which >> 2 & 3);
        let live = pull.as_ref().and_then(|pull| pull.attempts.keys().nth(nth).copied());
        let attempt = live.unwrap_or_else(|| AttemptId(which.into()));
        let is_forwarded = pull.as_ref().is_some_and(|pull| pull.forwarded == Some(attempt));
        let input = match what % 8 {
            0 | 1 => {
                let body_bytes = match (&pull, what & 0x80 == 0) {
                    (Some(pull), true) => BODY - pull.given,
                    (None, true) => BODY,
                    (_, false) => bytes.number(),
                };
                // The shell tells of each attempt's answer once.
                let has_answered = pull.and_then(|pull| pull.attempts.get_mut(&attempt));
                if has_answered.is_some_and(|has_answered| std::mem::replace(has_answered, true)) {
                    return;
                }
                let backlog_bytes = (what & 0x40 != 0).then(|| bytes.number());
                Input::FetchAnswered { pull: id, attempt, body_bytes, backlog_bytes }
            }
            2 => {
                if let Some(pull) = pull {
                    pull.attempts.remove(&attempt);
                    pull.forwarded = pull.forwarded.filter(|_| !is_forwarded);
                }
                Input::FetchFailed { pull: id, attempt, cause: any_cause(bytes) }
            }
            3..=5 => {
                let starved = Duration::from_millis(u64::from(bytes.byte()) * 16);
                let some = u64::from(bytes.byte()) * (BODY / 1024);
                let bytes = pull.filter(|_| is_forwarded).map_or(some, |pull| {
                    let some = some.min(BODY - pull.given);
                    pull.given += some;
                    some
                });
                Input::FetchProgressed { pull: id, attempt, bytes, starved }
            }
            6 => {
                let rest = pull.map_or(0, |pull| BODY - pull.given);
                if is_forwarded {
                    shell.pulls.remove(&id);
                } else if live.is_some() {
                    return;
                }
                Input::FetchCompleted { pull: id, attempt, bytes: rest }
            }
            _ => return shell.abandon(now, id),
        };
        shell.handle(now, input);
    }

    fn containerd(&mut self, number: usize, bytes: &mut Bytes<'_>) -> Input {
        let shell = &mut self.shells[number];
        let cause = String::new();
        match bytes.below(17) {
            0 => Input::ContainerdConnected { version: "1.7.24".to_owned() },
            1 => Input::ContainerdDisconnected { cause },
            2 | 3 => Input::Listed(Listing {
                images: (0..bytes.below(6)).map(|_| any_image(bytes)).collect(),
                contents: (0..bytes.below(10)).map(|_| any_content(bytes)).collect(),
            }),
            4 => Input::ListFailed { cause },
            5 => Input::ImageChanged(any_image(bytes)),
            6 => Input::ImageDeleted { name: any_name(bytes) },
            7 => Input::BlobCommitted { digest: any_digest(bytes) },
            8 => Input::BlobRemoved { digest: any_digest(bytes) },
            9 => Input::WatchLost { cause },
            10 => {
                let digest = shell.inspections.pop().unwrap_or_else(|| any_digest(bytes));
                let outcome = match bytes.below(4) {
                    0 | 1 => Inspection::Present(vocabulary::content(digest, bytes)),
                    2 => Inspection::Absent,
                    _ => Inspection::Failed { cause },
                };
                Input::Inspected { digest, outcome }
            }
            11 => {
                let digest = shell.reads.pop().unwrap_or_else(|| any_digest(bytes));
                let outcome = match bytes.below(6) {
                    0 | 1 => ManifestRead::Bytes(bytes_of(&digest)),
                    2 => ManifestRead::Bytes(bytes.some().to_vec()),
                    3 => ManifestRead::TooLarge,
                    4 => ManifestRead::Absent,
                    _ => ManifestRead::Failed { cause },
                };
                Input::ManifestRead { digest, outcome }
            }
            12 => Input::ContainerdProbed,
            13 => Input::ContainerdProbeFailed { cause },
            14 => Input::ContentWatched,
            15 => Input::ChangesMissed { cause },
            _ => Input::ContentUnreadable { digest: any_digest(bytes) },
        }
    }

    fn cluster(&mut self, number: usize, bytes: &mut Bytes<'_>) -> Input {
        let shell = &mut self.shells[number];
        let cause = String::new();
        match bytes.below(8) {
            0 => Input::ListenAddrsChanged { addrs: any_addrs(bytes) },
            1 | 2 => {
                let addrs = (0..bytes.below(8)).map(|_| {
                    let addr = router_addr(bytes.below(6));
                    BootstrapAddr { addr, peer: bytes.flag().then(|| any_peer(bytes)) }
                });
                Input::BootstrapResolved { addrs: addrs.collect() }
            }
            3 => Input::BootstrapFailed { cause },
            4 => {
                let question = QuestionId(shell.question_next);
                shell.question_next += 1;
                shell.questions.insert(question);
                Input::HoldersAsked { question, key: Key::of_digest(&any_digest(bytes)) }
            }
            5 => {
                let addr = shell.dials.pop_first().unwrap_or_else(|| router_addr(bytes.below(6)));
                Input::Dialed { addr, peer: any_peer(bytes) }
            }
            6 => {
                let addr = shell.dials.pop_first().unwrap_or_else(|| router_addr(bytes.below(6)));
                Input::DialFailed { addr, cause }
            }
            _ => Input::ShutdownRequested,
        }
    }
}

/// What the content store has under a digest.
fn bytes_of(sought: &Digest) -> Vec<u8> {
    (0..8).find(|number| digest(*number) == *sought).map(document).unwrap_or_default()
}

fn corrupt(message: &mut [u8], bytes: &mut Bytes<'_>) {
    let at = bytes.below(message.len());
    if let Some(byte) = message.get_mut(at) {
        *byte ^= bytes.byte().max(1);
    }
}

/// A message that no node sent.
fn any_message(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let keys = |bytes: &mut Bytes<'_>| (0..bytes.below(6)).map(|_| any_key(bytes)).collect::<Vec<_>>();
    match bytes.below(7) {
        0 => bytes.some().to_vec(),
        6 => Request::Compare {
            view: Fingerprint { count: bytes.number(), xor: bytes.number().into() },
            after: None,
        }
        .encode(),
        1 => Request::Swim(bytes.some().to_vec()).encode(),
        2 => Request::Lookup { key: any_key(bytes) }.encode(),
        3 => Request::Goodbye { generation: bytes.flag().then(|| bytes.number()) }.encode(),
        _ => {
            let (add, remove) = (keys(bytes), keys(bytes));
            let choice = bytes.byte();
            let mut holds = Fingerprint::default();
            if choice & 1 == 0 {
                add.iter().for_each(|key| holds.add(key));
            }
            let [reset, complete, wants] = [2, 4, 8].map(|bit| choice & bit != 0);
            Request::Announce(Announce { reset, add, remove, complete, holds, wants }).encode()
        }
    }
}

fn any_key(bytes: &mut Bytes<'_>) -> Key {
    if bytes.flag() { Key::of(&any_name(bytes)) } else { Key::of_digest(&any_digest(bytes)) }
}

fn any_cause(bytes: &mut Bytes<'_>) -> FetchError {
    match bytes.below(6) {
        0 => FetchError::Connect,
        1 => FetchError::NotFound,
        2 => FetchError::Refused { status: 503 },
        3 => FetchError::Refused { status: 429 },
        4 => FetchError::Malformed,
        _ => FetchError::Interrupted,
    }
}
