//! Remembers across pulls how each peer behaves: latency, throughput, load, failures. Decides
//! who may be asked (a circuit breaker per peer), in what order, and how long to wait before
//! asking a second one. Never starts or ends anything itself: [`crate::fetch`] reports to it
//! and asks it; it speaks only of peers, not of pulls or content.

mod breaker;
mod latency;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

pub use self::breaker::BreakerState;
use self::{
    breaker::{Breaker, Change, Standing, UNANSWERED_MAX},
    latency::Latency,
};
use crate::{FetchError, Notice, PeerId, oci::Digest, rng::Rng};

/// Most peers remembered; beyond, the one not used for longest is forgotten. Less than the size
/// of the cluster and failing nodes are tried afresh; more costs some 300 bytes each.
pub(crate) const PEERS_MAX: usize = 8192;

/// Shortest wait before a second peer is asked. Shorter and the ordinary scatter of a quick
/// network doubles every request.
pub(crate) const HEDGE_MIN: Duration = Duration::from_millis(20);

/// Longest wait before a second peer is asked. Longer and a dead holder uses up too much of a
/// pull's deadline for the others to be tried.
pub(crate) const HEDGE_MAX: Duration = Duration::from_millis(200);

/// The wait as long as no answer was ever seen.
const HEDGE_INITIAL: Duration = Duration::from_millis(50);

/// How long a measured latency or throughput counts. Too short and every pull is a first one;
/// too long and a peer that was slow once, and is avoided for that, never gets to show better.
const MEASURE_TTL: Duration = Duration::from_secs(60);

/// Bytes per second below which a peer counts as slow: 2 Mbit/s, at which a layer of 30 MB takes
/// two minutes, slower than about any registry. Higher and nodes with honest slow links lose
/// their mirror; lower and a broken link holds pulls up.
pub(crate) const THROUGHPUT_FLOOR: u64 = 256 * 1024;

/// An answer that takes this many times as long as the last one is counted as missing. Fewer and
/// a peer that is merely slower than the others is shunned; more and one that died is asked again
/// and again as long as others answer quickly.
const LATE_TIMES: u32 = 4;

/// A throughput this many times lower than before is believed at once, not averaged. Fewer and one
/// bad second outweighs a good minute; more and a broken link looks fast for seconds.
const DROP_TIMES: u64 = 4;

/// What went wrong with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The shell reported it.
    Fetch(FetchError),
    /// No byte came for too long in mid-body.
    Stalled,
    /// Bytes came, but too slowly.
    TooSlow,
}

/// Order in which peers are asked: least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Whether this would be the one probe of a shunned peer.
    pub(crate) probe: bool,
    /// Whether it lately sent less than [`THROUGHPUT_FLOOR`].
    pub(crate) slow: bool,
    other_zone: bool,
    in_flight: u32,
    latency_class: u32,
}

/// What is known of a peer, for metrics and the debug page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReport {
    /// The peer.
    pub peer: PeerId,
    /// Whether it is asked.
    pub state: BreakerState,
    /// Failures since its last complete transfer.
    pub failures: u32,
    /// Requests that this node has at it.
    pub in_flight: u32,
    /// How long it takes to answer, on average.
    pub first_byte: Option<Duration>,
    /// How fast it sends, lately, in bytes per second.
    pub throughput_bytes: Option<u64>,
}

/// What is remembered of one peer.
#[derive(Debug)]
struct Peer {
    used_at: Instant,
    in_flight: u32,
    latency: Latency,
    latency_at: Instant,
    /// How long its last answer took; other than `latency`, without those that never came.
    answered_in: Duration,
    throughput: Option<(Instant, u64)>,
    breaker: Breaker,
    /// The address that answered last.
    addr: Option<SocketAddr>,
}

/// The memory of all peers.
#[derive(Debug)]
pub(crate) struct Health {
    rng: Rng,
    peers: BTreeMap<PeerId, Peer>,
    /// Of all peers together.
    latency: Latency,
    /// At most one each time a breaker opens or closes; drained after every call.
    events: VecDeque<Notice>,
}

impl Health {
    /// A memory of nobody.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed, "health"),
            peers: BTreeMap::new(),
            latency: Latency::default(),
            events: VecDeque::new(),
        }
    }

    /// Whether and how gladly a peer is asked at `now`; `None` while it is shunned.
    ///
    /// Own transfers come before latency: a peer that answers a little later but has nothing
    /// else to do for us sends faster than one that shares its link among three layers.
    pub(crate) fn rank(&self, now: Instant, peer: &PeerId, same_zone: bool) -> Option<Rank> {
        let known = self.peers.get(peer);
        let probe = match known.map_or(Standing::Trusted, |known| known.breaker.standing(now)) {
            Standing::Trusted => false,
            Standing::Probe => true,
            Standing::Shunned => return None,
        };
        Some(Rank {
            probe,
            slow: self.throughput(now, peer).is_some_and(|rate| rate < THROUGHPUT_FLOOR),
            other_zone: !same_zone,
            in_flight: self.in_flight(peer),
            latency_class: known.map_or(0, |known| known.latency_class(now)),
        })
    }

    /// How fast a peer lately sent, in bytes per second.
    pub(crate) fn throughput(&self, now: Instant, peer: &PeerId) -> Option<u64> {
        let (at, rate) = self.peers.get(peer)?.throughput?;
        (now.saturating_duration_since(at) < MEASURE_TTL).then_some(rate)
    }

    /// How many transfers from a peer are under way.
    pub(crate) fn in_flight(&self, peer: &PeerId) -> u32 {
        self.peers.get(peer).map_or(0, |known| known.in_flight)
    }

    /// The address at which a peer answered last.
    pub(crate) fn addr(&self, peer: &PeerId) -> Option<SocketAddr> {
        self.peers.get(peer)?.addr
    }

    /// How long to wait for one peer before asking another: twice what nine answers in ten
    /// come within, so that hardly one request in ten is sent twice.
    pub(crate) fn hedge_delay(&self) -> Duration {
        self.latency.ninetieth().map_or(HEDGE_INITIAL, |wait| (wait * 2).clamp(HEDGE_MIN, HEDGE_MAX))
    }

    /// A peer was asked. True if that is the one probe of a shunned peer; hand that back to
    /// [`Health::on_released`].
    pub(crate) fn on_launched(&mut self, now: Instant, peer: PeerId) -> bool {
        let known = remembered(&mut self.peers, now, peer);
        known.in_flight = known.in_flight.saturating_add(1);
        known.breaker.on_launched(now)
    }

    /// A request to a peer is over, however it ended; call after what is to be said of it.
    pub(crate) fn on_released(&mut self, now: Instant, peer: PeerId, probe: bool) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.in_flight = known.in_flight.saturating_sub(1);
            if probe {
                known.breaker.on_probe_inconclusive(now, &mut self.rng);
            }
        }
    }

    /// A peer began to answer at `addr`, `first_byte` after it was asked.
    pub(crate) fn on_answered(&mut self, now: Instant, peer: PeerId, addr: SocketAddr, first_byte: Duration) {
        self.latency.answered(first_byte);
        let known = remembered(&mut self.peers, now, peer);
        known.latency.answered(first_byte);
        known.latency_at = now;
        known.answered_in = first_byte;
        known.addr = Some(addr);
        let change = known.breaker.on_answered();
        self.note(peer, change);
    }

    /// A request was given up after `waited` without an answer: the deadline passed, another peer
    /// was faster, or the client left.
    pub(crate) fn on_unanswered(&mut self, now: Instant, peer: PeerId, waited: Duration) {
        let patience = self.hedge_delay();
        if waited < patience {
            return;
        }
        self.latency.unanswered(waited);
        let known = remembered(&mut self.peers, now, peer);
        known.latency.unanswered(waited);
        known.latency_at = now;
        // To be outrun by quicker peers is no failure, unless it took far longer than usual.
        if waited < known.answered_in.saturating_mul(LATE_TIMES).min(UNANSWERED_MAX) {
            return;
        }
        let change = known.breaker.on_unanswered(now, waited, &mut self.rng);
        self.note(peer, change);
    }

    /// A peer failed.
    pub(crate) fn on_failed(&mut self, now: Instant, peer: PeerId, failure: Failure) {
        let known = remembered(&mut self.peers, now, peer);
        let change = known.breaker.on_failed(now, failure, &mut self.rng);
        self.note(peer, change);
    }

    /// A peer sent `bytes` in `elapsed`.
    pub(crate) fn on_throughput(&mut self, now: Instant, peer: PeerId, bytes: u64, elapsed: Duration) {
        let nanos = elapsed.as_nanos().max(1);
        let rate = u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX);
        let recent = self.throughput(now, &peer);
        // What is much lower is no fluctuation: a link that broke must show at once, or the next
        // pull begins there.
        let steady = recent.filter(|past| rate >= past / DROP_TIMES);
        let rate = steady.map_or(rate, |past| past / 2 + rate / 2);
        remembered(&mut self.peers, now, peer).throughput = Some((now, rate));
    }

    /// A peer gave all that was asked of it.
    pub(crate) fn on_served(&mut self, now: Instant, peer: PeerId) {
        remembered(&mut self.peers, now, peer).breaker.on_served();
    }

    /// containerd accepted content that came from this peer alone.
    pub(crate) fn on_verified(&mut self, now: Instant, peer: PeerId) {
        remembered(&mut self.peers, now, peer).breaker.on_verified();
    }

    /// containerd did not accept `digest`, which came from this peer alone.
    pub(crate) fn on_wrong_content(&mut self, now: Instant, peer: PeerId, digest: Digest) {
        let change = remembered(&mut self.peers, now, peer).breaker.on_wrong_content(now, digest);
        self.note(peer, change);
    }

    /// A peer is no longer a member: should it come back, it starts afresh. Not so one that is
    /// known for wrong content, or a restart would clear it.
    /// Its transfers under way still count: bytes may flow on from a node that was declared down
    /// wrongly, or leaves in good order.
    pub(crate) fn on_member_down(&mut self, peer: &PeerId) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        if known.breaker.remembers_wrong_content() {
            return;
        }
        if known.in_flight == 0 {
            self.peers.remove(peer);
        } else {
            *known = Peer { in_flight: known.in_flight, ..Peer::new(known.used_at) };
        }
    }

    /// What is known of every peer.
    pub(crate) fn report(&self, now: Instant) -> Vec<PeerReport> {
        let report = |(peer, known): (&PeerId, &Peer)| PeerReport {
            peer: *peer,
            state: known.breaker.state(now),
            failures: known.breaker.failures(),
            in_flight: known.in_flight,
            first_byte: known.latency.mean(),
            throughput_bytes: self.throughput(now, peer),
        };
        self.peers.iter().map(report).collect()
    }

    /// What an operator may want to know.
    pub(crate) fn poll_event(&mut self) -> Option<Notice> {
        self.events.pop_front()
    }

    fn note(&mut self, peer: PeerId, change: Option<Change>) {
        match change {
            None => {}
            Some(Change::Shunned { reason, duration }) => {
                self.events.push_back(Notice::PeerShunned { peer, reason, duration });
            }
            Some(Change::Trusted) => self.events.push_back(Notice::PeerTrusted { peer }),
        }
    }
}

/// What is remembered of `peer`, which counts as used `now`; makes room for one not seen before.
fn remembered(peers: &mut BTreeMap<PeerId, Peer>, now: Instant, peer: PeerId) -> &mut Peer {
    if !peers.contains_key(&peer) && peers.len() >= PEERS_MAX {
        // Those in use last: their count of transfers would be lost.
        let oldest = peers.iter().min_by_key(|(_, known)| (known.in_flight > 0, known.used_at));
        if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
            peers.remove(&oldest);
        }
    }
    let known = peers.entry(peer).or_insert_with(|| Peer::new(now));
    known.used_at = now;
    known
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            used_at: now,
            in_flight: 0,
            latency: Latency::default(),
            latency_at: now,
            answered_in: Duration::ZERO,
            throughput: None,
            breaker: Breaker::default(),
            addr: None,
        }
    }

    /// Peers of one class differ by no more than chance: below 5 ms, below 15, 35, 75 …. Who was
    /// never asked, or not for long, is in the first, and so gets the chance to be measured.
    fn latency_class(&self, now: Instant) -> u32 {
        let fresh = now.saturating_duration_since(self.latency_at) < MEASURE_TTL;
        let mean = self.latency.mean().filter(|_| fresh).unwrap_or(Duration::ZERO);
        (mean.as_millis() / 5 + 1).ilog2()
    }
}
