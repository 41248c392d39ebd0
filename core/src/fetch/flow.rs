//! A body on its way: bytes of one holder go to the client, and the shell reports how they come.

use std::time::{Duration, Instant};

use super::{
    Context,
    attempts::Attempt,
    pull::offer::{COMPARE_INTERVAL, COMPARED_BYTES_MIN, Offer},
    rates::{Measured, Rates, WINDOW},
};
use crate::{AttemptId, PeerId};

/// How often progress is reported. Longer and stalls are noticed late by as much; shorter and
/// reports cost more than bytes.
pub(crate) const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// How long a peer may send nothing in mid-body. Shorter and a garbage collection or a burst of
/// retransmissions looks like death; longer and the client waits for a dead peer.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(1);

/// Most waiting for the peer that one report tells. Less and an executor that is late by a few milliseconds hides
/// a slow peer; more and a pause of this process looks like a peer's stall.
const STARVED_MAX: Duration = Duration::from_millis(2 * REPORT_INTERVAL.as_millis() as u64);

/// How long the shell may report nothing at all of a flowing body before that is given up. It
/// promises a report each [`REPORT_INTERVAL`] even when the client is blocked; shorter and a
/// starved process abandons good transfers; longer and a lost task hangs its client.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Bytes that a transfer shorter than the measuring window must have for its speed to tell
/// something; less is dominated by latency.
const RATE_SAMPLE_MIN: u64 = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) id: AttemptId,
    pub(super) attempt: Attempt,
    reported_at: Instant,
    /// Whether silence was excused by a pause since the last report: once, lest pauses hide a lost task for ever.
    is_reprieved: bool,
    /// Time spent waiting for the peer since its last byte.
    starved: Duration,
    rates: Rates,
    rate_noted_at: Instant,
    /// What the holder had to send to others when this began; `None` if it does not say.
    backlog_bytes: Option<u64>,
    /// When another holder was asked last whether it has less.
    pub(super) compared_at: Instant,
    /// How long until the next one is.
    pub(super) compare_wait: Duration,
    /// How fast this was then.
    pub(super) compared_rate: u64,
    /// How fast the holder was that was left for this one, until it is known whether this one is as fast.
    pub(super) left_rate: Option<u64>,
}

impl Flow {
    pub(super) fn new(now: Instant, offer: &Offer) -> Self {
        Self {
            id: offer.id,
            attempt: offer.attempt,
            reported_at: now,
            is_reprieved: false,
            starved: Duration::ZERO,
            rates: Rates::default(),
            rate_noted_at: now,
            backlog_bytes: offer.backlog_bytes,
            compared_at: now,
            compare_wait: COMPARE_INTERVAL,
            compared_rate: 0,
            left_rate: None,
        }
    }

    /// When it is given up if nothing is reported of it.
    pub(super) fn silent_at(&self) -> Instant {
        self.reported_at + SILENCE_MAX
    }

    pub(super) fn on_paused(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_reprieved, true) {
            self.reported_at = now.max(self.reported_at);
        }
    }

    pub(super) fn on_reported(&mut self, now: Instant, bytes: u64, starved: Duration) {
        let elapsed = now.saturating_duration_since(self.reported_at);
        self.reported_at = now.max(self.reported_at);
        self.is_reprieved = false;
        // A report that covers more came late: this process was paused, not the peer silent.
        let starved = starved.min(STARVED_MAX);
        self.rates.push(elapsed, bytes, starved);
        self.starved = if bytes > 0 { Duration::ZERO } else { self.starved.saturating_add(starved) };
    }

    /// Whether others wait for the same holder, given how many of this node's transfers come from it.
    pub(super) fn is_shared(&self, in_flight: u32) -> bool {
        self.backlog_bytes.is_some_and(|backlog| backlog >= COMPARED_BYTES_MIN || in_flight > 1)
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.starved >= STALL_MAX
    }

    /// How fast it lately was, which is told of its peer once in each window; `None` before the first.
    pub(super) fn measured(&mut self, cx: &mut Context<'_>, peer: PeerId) -> Option<Measured> {
        let measured = self.rates.measured()?;
        if cx.now.saturating_duration_since(self.rate_noted_at) >= WINDOW {
            self.rate_noted_at = cx.now;
            note_rate(cx, peer, measured);
        }
        Some(measured)
    }

    /// Tells what a body that has come whole says of its peer's speed.
    pub(super) fn note_last_rate(&self, cx: &mut Context<'_>, peer: PeerId) {
        let sent = self.rates.so_far();
        if sent.bytes >= RATE_SAMPLE_MIN {
            note_rate(cx, peer, sent);
        }
    }
}

/// Tells what a peer's speed was; if the client was the slower side, that is only a lower bound.
pub(super) fn note_rate(cx: &mut Context<'_>, peer: PeerId, measured: Measured) {
    let known = cx.health.throughput(cx.now, &peer);
    if measured.peer_bound || known.is_none_or(|known| measured.rate() > known) {
        cx.health.on_throughput(cx.now, peer, measured.bytes, measured.elapsed);
    }
}
