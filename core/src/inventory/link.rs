//! Decides when to connect to containerd and when to list it. Never touches what is known;
//! the inventory calls it and tells it what changed while a listing was under way, so that a
//! stale answer cannot undo an event.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    backoff::Backoff,
    oci::Digest,
    output::{ANSWER_GRACE, soonest},
    rng::Rng,
};

/// First and longest pause between attempts to connect. Shorter and a dead containerd costs CPU;
/// longer and news of a restarted one is late.
const CONNECT_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How long containerd may take to open its event stream. Shorter and a busy containerd is
/// hung up on; longer and a hung one is not left for a restarted one.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long containerd may be silent before it is asked for a sign of life. Longer and a frozen
/// one is noticed later: its socket accepts, then says nothing and gives no error. Shorter only
/// wakes idle nodes.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);

/// How long containerd may take to give a sign of life, which it has in memory. Shorter and one
/// that is starved of CPU counts as dead; longer and a frozen one is noticed later.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a listing may take. It reads all of containerd's database: 12 000 blobs take a fraction
/// of a second on an idle disk. Shorter and a node with many images on a slow one is never listed;
/// longer and one lost answer leaves the node blind.
pub(crate) const LIST_TIMEOUT: Duration = Duration::from_secs(60);

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
    Probe,
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
    /// Being probed when it has been silent.
    Connected {
        probe: Probe,
    },
    Waiting {
        at: Instant,
    },
}

#[derive(Debug)]
enum Probe {
    At(Instant),
    Asked { deadline: Instant },
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
        matches!(self.connection, Connection::Connected { .. })
    }

    /// Whether a listing was ordered whose answer is known or awaited.
    pub(super) const fn has_listed(&self) -> bool {
        self.is_listed || self.touched.is_some()
    }

    /// Whether containerd was listed at least once.
    pub(super) const fn is_listed(&self) -> bool {
        self.is_listed
    }

    pub(super) fn on_connected(&mut self, now: Instant) {
        self.abandon_listing(now);
        self.connection = Connection::Connected { probe: Probe::At(now + PROBE_INTERVAL) };
        self.list_at = Some(now);
    }

    /// containerd said something over the connection: it lives.
    pub(super) fn on_sign_of_life(&mut self, now: Instant) {
        if let Connection::Connected { probe } = &mut self.connection {
            *probe = Probe::At(now + PROBE_INTERVAL);
        }
    }

    /// Returns whether this is the begin of an outage.
    pub(super) fn on_probe_failed(&mut self, now: Instant, rng: &mut Rng) -> bool {
        // What is not waited for was asked over an earlier connection.
        matches!(self.connection, Connection::Connected { probe: Probe::Asked { .. } })
            && self.on_disconnected(now, rng)
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

    /// Returns what came to its timeout if an outage begins with it.
    pub(super) fn handle_timeout(&mut self, now: Instant, rng: &mut Rng) -> Option<&'static str> {
        let mut outage = None;
        let connect_deadline = now + CONNECT_TIMEOUT + ANSWER_GRACE;
        match &mut self.connection {
            Connection::Connecting { deadline } if deadline.is_some_and(|deadline| deadline <= now) => {
                outage = self.on_disconnected(now, rng).then_some("opening the event stream took too long");
            }
            Connection::Connecting { deadline } => {
                deadline.get_or_insert(connect_deadline);
            }
            Connection::Waiting { at } if *at <= now => {
                self.connection = Connection::Connecting { deadline: Some(connect_deadline) };
                self.orders.push_back(Order::Connect);
            }
            Connection::Connected { probe: Probe::Asked { deadline } } if *deadline <= now => {
                outage = self.on_disconnected(now, rng).then_some("it gave no sign of life");
            }
            Connection::Connected { probe } => {
                if matches!(probe, Probe::At(at) if *at <= now) {
                    *probe = Probe::Asked { deadline: now + PROBE_TIMEOUT + ANSWER_GRACE };
                    self.orders.push_back(Order::Probe);
                }
            }
            Connection::Waiting { .. } => {}
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
            self.list_deadline = Some(now + LIST_TIMEOUT + ANSWER_GRACE);
            self.touched.get_or_insert_default();
            self.orders.push_back(Order::List);
        }
        outage
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let connection = match self.connection {
            Connection::Connecting { deadline } => deadline,
            Connection::Waiting { at } => Some(at),
            Connection::Connected { probe: Probe::At(at) | Probe::Asked { deadline: at } } => Some(at),
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
        /// Whether containerd is heard of whenever a probe would be due.
        is_heard_of: bool,
    }

    impl Fixture {
        fn new() -> Self {
            Self { link: Link::new(), rng: Rng::new(1, "link"), now: test_time::start(), is_heard_of: true }
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
            if self.is_heard_of {
                self.link.on_sign_of_life(self.now);
            }
            self.link.handle_timeout(self.now, &mut self.rng);
            std::iter::from_fn(|| self.link.poll_order()).collect()
        }

        /// Goes to the next timeout; returns how long that took.
        fn skip(&mut self) -> Duration {
            let from = self.now;
            loop {
                let at = self.link.poll_timeout().expect("a timeout");
                self.link.handle_timeout(at - TICK, &mut self.rng);
                self.now = at.max(self.now);
                let probe_due = matches!(self.link.connection, Connection::Connected { probe: Probe::At(due) } if due <= at);
                if !(self.is_heard_of && probe_due) {
                    return self.now - from;
                }
                self.link.on_sign_of_life(at);
            }
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
        assert_eq!(f.skip(), CONNECT_TIMEOUT + ANSWER_GRACE);
        assert_eq!(f.due(), []);
        assert!(f.skip() <= CONNECT_BACKOFF.0);
        assert_eq!(f.due(), [Order::Connect]);
    }

    #[test]
    fn silent_containerd_is_probed_and_taken_for_dead_without_an_answer() {
        let mut f = Fixture::listed();
        f.is_heard_of = false;
        assert_eq!(f.skip(), PROBE_INTERVAL);
        assert_eq!(f.due(), [Order::Probe]);
        f.link.on_sign_of_life(f.now);
        assert_eq!(f.skip(), PROBE_INTERVAL, "it lives");
        assert_eq!(f.due(), [Order::Probe]);
        assert_eq!(f.skip(), PROBE_TIMEOUT + ANSWER_GRACE);
        assert!(f.link.handle_timeout(f.now, &mut f.rng).is_some(), "an outage begins");
        assert!(!f.link.is_connected());
        assert!(f.skip() <= CONNECT_BACKOFF.1);
        assert_eq!(f.due(), [Order::Connect]);
    }

    #[test]
    fn containerd_that_is_heard_of_is_not_probed() {
        let mut f = Fixture::listed();
        f.is_heard_of = false;
        for _ in 0..10 {
            f.now += PROBE_INTERVAL - TICK;
            assert_eq!(f.due(), []);
            f.link.on_sign_of_life(f.now);
        }
    }

    #[test]
    fn failed_probe_ends_the_connection_unless_it_was_made_over_an_earlier_one() {
        let mut f = Fixture::listed();
        f.is_heard_of = false;
        assert!(!f.link.on_probe_failed(f.now, &mut f.rng), "none was made");
        assert!(f.link.is_connected());
        f.skip();
        assert_eq!(f.due(), [Order::Probe]);
        assert!(f.link.on_probe_failed(f.now, &mut f.rng), "an outage begins");
        f.link.on_connected(f.now);
        assert!(!f.link.on_probe_failed(f.now, &mut f.rng), "it is late");
        assert!(f.link.is_connected());
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
        assert_eq!(f.skip(), LIST_TIMEOUT + ANSWER_GRACE);
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
