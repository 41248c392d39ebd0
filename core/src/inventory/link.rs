//! Decides when to connect to containerd and when to list it. Never touches what is known;
//! the inventory calls it and tells it what changed while a listing was under way, so that a
//! stale answer cannot undo an event.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{backoff::Backoff, oci::Digest, output::soonest, rng::Rng};

/// First and longest pause between attempts to connect. Shorter and a dead containerd costs CPU;
/// longer and news of a restarted one is late.
const CONNECT_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How long containerd may take to open its event stream. Shorter and a busy containerd is
/// hung up on; longer and a hung one is not left for a restarted one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a listing may take. Shorter and a node with many images on a slow disk is never
/// listed; longer and one lost answer leaves the node blind.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);

/// First and longest pause after a failed listing. Shorter and an overloaded containerd gets
/// more load; longer and the node stays empty after its trouble is over.
const LIST_BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// How long the answer to a listing ordered before an outage may get in the way of the next one.
/// Shorter and it may be taken for the answer to that; longer and news are late.
const STALE_LIST_PATIENCE: Duration = Duration::from_secs(1);

/// Longest time between listings when nothing seems wrong (at least half of it). Shorter and
/// every node keeps listing for nothing; longer and a lost event stays unhealed.
const RESYNC_INTERVAL: Duration = Duration::from_secs(600);

/// First and longest delay of a listing because something may have been missed; half of it at
/// least. Shorter and a burst of trouble lists every time; longer and what was missed is late.
const RESYNC_BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Most digests (and most names) remembered as changed during one listing. Lower and a busy
/// node's listings are thrown away; higher only costs memory.
pub(super) const TOUCHED_MAX: usize = 100_000;

/// What to do about containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Connect,
    List,
}

/// What changed since the listing was ordered: there, what is known is fresher than the listing.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) digests: BTreeSet<Digest>,
    pub(super) names: BTreeSet<String>,
    overflowed: bool,
}

#[derive(Debug)]
enum Connection {
    /// No deadline before the time is known.
    Connecting {
        deadline: Option<Instant>,
    },
    Connected,
    Waiting {
        at: Instant,
    },
}

#[derive(Debug)]
pub(super) struct Link {
    connection: Connection,
    connect_backoff: Backoff,
    lost_is_noted: bool,
    /// Deadline of the listing under way.
    list_deadline: Option<Instant>,
    list_at: Option<Instant>,
    list_backoff: Backoff,
    /// While a listing of an earlier connection may still be answered.
    stale_until: Option<Instant>,
    resync_at: Option<Instant>,
    resync_backoff: Backoff,
    touched: Option<Touched>,
    is_listed: bool,
    orders: VecDeque<Order>,
}

impl Link {
    pub(super) fn new() -> Self {
        Self {
            connection: Connection::Connecting { deadline: None },
            connect_backoff: Backoff::new(CONNECT_BACKOFF.0, CONNECT_BACKOFF.1),
            lost_is_noted: false,
            list_deadline: None,
            list_at: None,
            list_backoff: Backoff::new(LIST_BACKOFF.0, LIST_BACKOFF.1),
            stale_until: None,
            resync_at: None,
            resync_backoff: Backoff::new(RESYNC_BACKOFF.0, RESYNC_BACKOFF.1),
            touched: None,
            is_listed: false,
            orders: VecDeque::from([Order::Connect]),
        }
    }

    pub(super) const fn is_connected(&self) -> bool {
        matches!(self.connection, Connection::Connected)
    }

    /// Whether containerd was listed at least once.
    pub(super) const fn is_listed(&self) -> bool {
        self.is_listed
    }

    pub(super) fn on_connected(&mut self, now: Instant) {
        self.abandon_listing(now);
        self.connection = Connection::Connected;
        self.list_at = Some(now);
    }

    /// Returns whether this is the begin of an outage.
    pub(super) fn on_disconnected(&mut self, now: Instant, rng: &mut Rng) -> bool {
        self.abandon_listing(now);
        self.list_at = None;
        if !matches!(self.connection, Connection::Waiting { .. }) {
            self.connection = Connection::Waiting { at: now + self.connect_backoff.next_delay(rng) };
        }
        !std::mem::replace(&mut self.lost_is_noted, true)
    }

    fn abandon_listing(&mut self, now: Instant) {
        if self.list_deadline.take().is_some() {
            self.stale_until = Some(now + STALE_LIST_PATIENCE);
        }
        self.touched = None;
    }

    /// Returns what changed meanwhile if the listing is to be used.
    pub(super) fn on_listed(&mut self, now: Instant, rng: &mut Rng) -> Option<Touched> {
        // An answer after its timeout is as good as one in time: events kept being recorded.
        let Some(touched) = self.touched.take() else {
            self.stale_until = None;
            return None;
        };
        self.list_deadline = None;
        self.list_backoff.reset();
        self.list_at = Some(now + rng.jittered(RESYNC_INTERVAL));
        if touched.overflowed {
            self.want_resync(now, rng);
            return None;
        }
        self.connect_backoff.reset();
        self.is_listed = true;
        Some(touched)
    }

    /// Whether this listing ended an outage; asked once per listing.
    pub(super) fn end_outage(&mut self) -> bool {
        std::mem::replace(&mut self.lost_is_noted, false)
    }

    pub(super) fn on_list_failed(&mut self, now: Instant, rng: &mut Rng) {
        if self.list_deadline.take().is_none() {
            self.stale_until = None;
            return;
        }
        self.touched = None;
        self.list_at = Some(now + self.list_backoff.next_delay(rng));
    }

    /// Something may have been missed: lists soon, later if that goes on.
    pub(super) fn want_resync(&mut self, now: Instant, rng: &mut Rng) {
        if self.resync_at.is_none() {
            self.resync_at = Some(now + self.resync_backoff.next_delay(rng));
        }
    }

    /// Leaves a test without the cure of a listing.
    #[cfg(test)]
    pub(super) const fn want_no_resync(&mut self) {
        self.resync_at = None;
    }

    pub(super) fn touch_digest(&mut self, digest: &Digest) {
        if let Some(touched) = &mut self.touched {
            if touched.digests.len() < TOUCHED_MAX {
                touched.digests.insert(*digest);
            } else {
                touched.overflowed = true;
            }
        }
    }

    pub(super) fn touch_name(&mut self, name: &str) {
        if let Some(touched) = &mut self.touched {
            if touched.names.len() < TOUCHED_MAX {
                touched.names.insert(name.to_owned());
            } else {
                touched.overflowed = true;
            }
        }
    }

    /// When the next listing is due, unless one is under way.
    fn list_due(&self) -> Option<Instant> {
        if !self.is_connected() || self.list_deadline.is_some() {
            return None;
        }
        let due = soonest(self.list_at, self.resync_at)?;
        Some(self.stale_until.map_or(due, |stale_until| stale_until.max(due)))
    }

    /// Returns whether an attempt to connect came to its timeout and an outage begins with it.
    pub(super) fn handle_timeout(&mut self, now: Instant, rng: &mut Rng) -> bool {
        let mut outage_begins = false;
        match &mut self.connection {
            Connection::Connecting { deadline } if deadline.is_some_and(|deadline| deadline <= now) => {
                outage_begins = self.on_disconnected(now, rng);
            }
            Connection::Connecting { deadline } => {
                deadline.get_or_insert(now + CONNECT_TIMEOUT);
            }
            Connection::Waiting { at } if *at <= now => {
                self.connection = Connection::Connecting { deadline: Some(now + CONNECT_TIMEOUT) };
                self.orders.push_back(Order::Connect);
            }
            Connection::Waiting { .. } | Connection::Connected => {}
        }
        if self.list_deadline.is_some_and(|deadline| deadline <= now) {
            self.list_deadline = None;
            self.list_at = Some(now + self.list_backoff.next_delay(rng));
        }
        if self.list_due().is_some_and(|due| due <= now) {
            if self.resync_at.is_none() {
                // A whole interval without suspicion.
                self.resync_backoff.reset();
            }
            self.list_at = None;
            self.resync_at = None;
            self.stale_until = None;
            self.list_deadline = Some(now + LIST_TIMEOUT);
            self.touched.get_or_insert_default();
            self.orders.push_back(Order::List);
        }
        outage_begins
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let connection = match self.connection {
            Connection::Connecting { deadline } => deadline,
            Connection::Waiting { at } => Some(at),
            Connection::Connected => None,
        };
        soonest(connection, soonest(self.list_deadline, self.list_due()))
    }

    pub(super) fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time;

    const TICK: Duration = Duration::from_nanos(1);

    struct Fixture {
        link: Link,
        rng: Rng,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self { link: Link::new(), rng: Rng::new(1, "link"), now: test_time::start() }
        }

        /// Ready and listed.
        fn listed() -> Self {
            let mut f = Self::new();
            f.link.on_connected(f.now);
            assert_eq!(f.due(), [Order::Connect, Order::List]);
            assert!(f.link.on_listed(f.now, &mut f.rng).is_some());
            f
        }

        fn due(&mut self) -> Vec<Order> {
            self.link.handle_timeout(self.now, &mut self.rng);
            std::iter::from_fn(|| self.link.poll_order()).collect()
        }

        /// Goes to the next timeout; returns how long that took.
        fn skip(&mut self) -> Duration {
            let at = self.link.poll_timeout().expect("a timeout");
            let waited = at.saturating_duration_since(self.now);
            self.link.handle_timeout(at - TICK, &mut self.rng);
            self.now = at;
            waited
        }
    }

    #[test]
    fn connects_at_start_and_for_ever() {
        let mut f = Fixture::new();
        assert_eq!(f.due(), [Order::Connect]);
        let mut outages = 0;
        for _ in 0..50 {
            outages += u32::from(f.link.on_disconnected(f.now, &mut f.rng));
            assert_eq!(f.link.poll_order(), None);
            assert!(f.skip() <= CONNECT_BACKOFF.1);
            assert_eq!(f.due(), [Order::Connect]);
        }
        assert_eq!(outages, 1, "an outage is noted once");
    }

    #[test]
    fn a_connection_that_never_answers_is_tried_again() {
        let mut f = Fixture::new();
        assert_eq!(f.due(), [Order::Connect]);
        assert_eq!(f.skip(), CONNECT_TIMEOUT);
        assert_eq!(f.due(), []);
        assert!(f.skip() <= CONNECT_BACKOFF.0);
        assert_eq!(f.due(), [Order::Connect]);
    }

    #[test]
    fn a_repeated_disconnection_does_not_delay_the_attempt() {
        let mut f = Fixture::listed();
        f.link.on_disconnected(f.now, &mut f.rng);
        let at = f.link.poll_timeout();
        f.link.on_disconnected(f.now, &mut f.rng);
        assert_eq!(f.link.poll_timeout(), at);
    }

    #[test]
    fn listing_is_never_doubled() {
        let mut f = Fixture::new();
        f.link.on_connected(f.now);
        assert_eq!(f.due(), [Order::Connect, Order::List]);
        f.link.want_resync(f.now, &mut f.rng);
        f.now += RESYNC_BACKOFF.1;
        f.link.list_deadline = Some(f.now + TICK);
        assert_eq!(f.due(), []);
        assert!(f.link.on_listed(f.now, &mut f.rng).is_some());
        assert_eq!(f.due(), [Order::List], "what was missed meanwhile");
    }

    #[test]
    fn failed_listing_is_retried_ever_later() {
        let mut f = Fixture::new();
        f.link.on_connected(f.now);
        assert_eq!(f.due(), [Order::Connect, Order::List]);
        let mut waits = Vec::new();
        for _ in 0..12 {
            f.link.on_list_failed(f.now, &mut f.rng);
            waits.push(f.skip());
            assert_eq!(f.due(), [Order::List]);
        }
        assert!(waits[0] <= LIST_BACKOFF.0 && waits[11] >= LIST_BACKOFF.1 / 2 && waits[11] <= LIST_BACKOFF.1);
    }

    #[test]
    fn unanswered_listing_is_retried_and_its_late_answer_used() {
        let mut f = Fixture::new();
        f.link.on_connected(f.now);
        assert_eq!(f.due(), [Order::Connect, Order::List]);
        f.link.touch_digest(&Digest::sha256_of(b"a"));
        assert_eq!(f.skip(), LIST_TIMEOUT);
        assert_eq!(f.due(), []);
        f.skip();
        assert_eq!(f.due(), [Order::List]);
        let touched = f.link.on_listed(f.now, &mut f.rng).expect("the first answer is used");
        assert!(touched.digests.contains(&Digest::sha256_of(b"a")));
        assert!(f.link.on_listed(f.now, &mut f.rng).is_none(), "the second is not");
    }

    #[test]
    fn answer_from_before_an_outage_is_not_used() {
        let mut f = Fixture::listed();
        f.skip();
        assert_eq!(f.due(), [Order::List]);
        f.link.on_disconnected(f.now, &mut f.rng);
        f.link.on_connected(f.now);
        assert_eq!(f.due(), [], "the answer may be on its way");
        assert!(f.link.on_listed(f.now, &mut f.rng).is_none());
        assert_eq!(f.due(), [Order::List]);
        f.link.on_disconnected(f.now, &mut f.rng);
        f.link.on_connected(f.now);
        assert_eq!(f.skip(), STALE_LIST_PATIENCE);
        assert_eq!(f.due(), [Order::List]);
    }

    #[test]
    fn repeated_suspicion_resyncs_ever_later() {
        let mut f = Fixture::listed();
        let mut waits = Vec::new();
        for _ in 0..8 {
            f.link.want_resync(f.now, &mut f.rng);
            let at = f.link.poll_timeout();
            f.link.want_resync(f.now, &mut f.rng);
            assert_eq!(f.link.poll_timeout(), at);
            waits.push(f.skip());
            assert_eq!(f.due(), [Order::List]);
            f.link.on_listed(f.now, &mut f.rng);
        }
        assert!(waits[0] >= Duration::from_secs(1) && waits[0] <= Duration::from_secs(2));
        assert!(waits[7] >= Duration::from_secs(30) && waits[7] <= Duration::from_secs(60));
        let calm = f.skip();
        assert!(calm >= RESYNC_INTERVAL / 2 && calm <= RESYNC_INTERVAL);
        assert_eq!(f.due(), [Order::List]);
        f.link.on_listed(f.now, &mut f.rng);
        f.link.want_resync(f.now, &mut f.rng);
        assert!(f.skip() <= Duration::from_secs(2), "calm is rewarded");
    }

    #[test]
    fn too_many_changes_make_a_listing_useless() {
        let mut f = Fixture::new();
        f.link.on_connected(f.now);
        assert_eq!(f.due(), [Order::Connect, Order::List]);
        for n in 0..=TOUCHED_MAX {
            f.link.touch_name(&n.to_string());
        }
        assert!(f.link.on_listed(f.now, &mut f.rng).is_none());
        assert!(!f.link.is_listed());
        assert!(f.skip() <= RESYNC_BACKOFF.0);
        assert_eq!(f.due(), [Order::List]);
    }
}
