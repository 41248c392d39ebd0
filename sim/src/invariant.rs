//! What must be true after every step, whatever the scenario: seen from the inputs and outputs
//! of all nodes, and from what the driver knows of the world.

mod agreement;
mod announced;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use spegel_core::{Input, Key, Notice, Output, PeerId, PullId, PullKind, RefuseReason, Report, oci::Digest};

pub use self::agreement::{Contents, agreement, agreement_by_key};
use self::announced::{Announced, announcement};
use crate::{containerd::Containerd, image::Image};

/// When containerd must have the beginning of an answer: the core's deadlines, and a little for
/// the ticks of the driver.
const ANSWER_MAX: Duration = Duration::from_millis(1050);
const BLOB_ANSWER_MAX: Duration = Duration::from_millis(2050);

/// The same after a pause of the process in which that was due: as long as answers may take to be read.
const CATCH_UP_MAX: Duration = Duration::from_millis(150);

/// Longest that a body may pause for want of a peer: a stall, a resume, a resume by another lookup,
/// and a report or two. A core that overlooks a stall is told by the silence of its shell only
/// after five seconds, if at all.
const PAUSE_MAX: Duration = Duration::from_millis(3200);

/// How long content that has gone from containerd may still be served.
const GONE_MAX: Duration = Duration::from_secs(3);

/// After a change of the cluster, or of what any node believes of it, how long until "nobody has
/// it" must be true. Detecting a death takes SWIM some five seconds, and an owner says that it does
/// not know for ten more. Nodes that have not found each other yet cannot ask each other; that they
/// do in the end is for [`agreement`].
const NOBODY_AFTER: Duration = Duration::from_secs(20);

/// How long after its end a node may be asked for content. Nine seconds have been seen until all
/// know, where a third of the nodes dies at once.
const DEAD_ASKED_MAX: Duration = Duration::from_secs(15);

/// How long after the last thing that happened a cluster comes to rest, and how long it must have
/// been left alone after for its work to be judged.
const RESTS_AFTER: Duration = Duration::from_secs(30);
const REST_MIN: Duration = Duration::from_secs(15);

/// Most control messages a second of a node at rest, in a cluster of any size: a probe, its answers
/// and reconciliation, and now and then gossip.
pub(crate) const RESTING_SENDS_PER_SECOND_MAX: u64 = 4;

/// The bounds that the core gives its tables; a report beyond them is a leak.
const LOOKUPS_MAX: usize = 1024;
const PULLS_MAX: usize = 4096;
const INSPECTIONS_MAX: usize = 4096;
const PEERS_MAX: usize = 8192;
const ENTRIES_MAX: usize = 1_000_000;

/// What a node did in a stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Control messages sent.
    pub sends: u64,
    /// Bytes of these.
    pub bytes_sent: u64,
    /// Listings of containerd.
    pub lists: u64,
    /// Single questions to containerd.
    pub inspections: u64,
    /// Manifests read.
    pub reads: u64,
    /// Questions to DNS.
    pub resolves: u64,
    /// Dials of an address that DNS gave.
    pub dials: u64,
}

/// Watches one run.
#[derive(Debug)]
pub struct Watch {
    nodes: BTreeMap<String, Watched>,
    quiet_from: Duration,
    /// When the cluster last changed in any way; `None` while a fault lasts.
    calm_since: Option<Duration>,
    /// Since when no network fault has lasted; `None` while one does.
    whole_since: Option<Duration>,
    /// When something happened last.
    stirred_at: Duration,
    by_peer: BTreeMap<PeerId, String>,
    /// Whether a node that starts is an excuse for not finding what others have.
    starts_disturb: bool,
    violation: Option<String>,
    /// Nodes that have something to do by a deadline.
    due: BTreeSet<String>,
    /// Whether messages are looked at only if they announce something.
    is_sparing: bool,
}

#[derive(Debug)]
struct Watched {
    me: PeerId,
    containerd: Containerd,
    running: bool,
    /// Members that it sees besides itself.
    sees: BTreeSet<PeerId>,
    pulls: BTreeMap<PullId, WatchedPull>,
    /// What it serves, and since when.
    serves: BTreeMap<Digest, Duration>,
    tags: BTreeMap<Key, Duration>,
    /// What it serves although it has gone, and since when.
    gone: BTreeMap<Digest, Duration>,
    /// The process was paused until then.
    excused_until: Duration,
    work: Work,
    /// What it did since the cluster came to rest after this moment.
    rest: (Duration, Work),
    announced: Announced,
    ended_at: Duration,
}

#[derive(Debug)]
struct WatchedPull {
    key: Key,
    digest: Option<Digest>,
    deadline: Duration,
    /// When bytes of the answer last moved, or the client was why they did not; none before it
    /// began.
    moved_at: Option<Duration>,
}

impl Watch {
    /// Watches nothing yet; counts work from `quiet_from` on.
    #[must_use]
    pub const fn new(quiet_from: Duration) -> Self {
        Self {
            nodes: BTreeMap::new(),
            quiet_from,
            calm_since: Some(Duration::ZERO),
            whole_since: Some(Duration::ZERO),
            stirred_at: Duration::ZERO,
            by_peer: BTreeMap::new(),
            starts_disturb: true,
            violation: None,
            due: BTreeSet::new(),
            is_sparing: false,
        }
    }

    /// Looks at no messages but announcements, and does not count them: for runs so large that it
    /// would take too long, whose messages are counted by others.
    pub const fn spare(&mut self) {
        self.is_sparing = true;
    }

    /// Newcomers are no excuse: neither they nor others may rule out what is there.
    pub const fn expect_of_newcomers(&mut self) {
        self.starts_disturb = false;
    }

    /// A process began on a node.
    pub fn started(&mut self, at: Duration, node: &str, me: PeerId, containerd: &Containerd) {
        let work = self.nodes.get(node).map(|node| node.work).unwrap_or_default();
        let watched = Watched {
            me,
            containerd: containerd.clone(),
            running: true,
            sees: BTreeSet::new(),
            pulls: BTreeMap::new(),
            serves: BTreeMap::new(),
            tags: BTreeMap::new(),
            gone: BTreeMap::new(),
            excused_until: Duration::ZERO,
            work,
            rest: (at, Work::default()),
            announced: Announced::default(),
            ended_at: Duration::ZERO,
        };
        self.by_peer.insert(me, node.to_owned());
        self.nodes.insert(node.to_owned(), watched);
        if self.starts_disturb {
            self.disturbed(at);
        }
    }

    /// A process ended, with all it knew.
    pub fn ended(&mut self, at: Duration, node: &str) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.running = false;
            node.pulls.clear();
            node.serves.clear();
            node.tags.clear();
            node.gone.clear();
            node.announced = Announced::default();
            node.ended_at = at;
        }
        self.disturbed(at);
    }

    /// The cluster changed at this moment.
    pub fn disturbed(&mut self, at: Duration) {
        self.calm_since = self.calm_since.map(|_| at);
        self.stirred_at = self.stirred_at.max(at);
    }

    /// A fault lasts from now on, until [`Watch::calm`].
    pub const fn uneasy(&mut self) {
        self.calm_since = None;
        self.whole_since = None;
    }

    /// No fault lasts any more.
    pub fn calm(&mut self, at: Duration) {
        self.calm_since = Some(at);
        self.whole_since = Some(at);
        self.stirred_at = self.stirred_at.max(at);
    }

    /// A process does not run from `at` to `until`: what is due is due after.
    pub fn frozen(&mut self, node: &str, at: Duration, until: Duration) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.excused_until = node.excused_until.max(until);
            for pull in node.pulls.values_mut() {
                pull.deadline = (pull.deadline + until.saturating_sub(at)).max(until + CATCH_UP_MAX);
            }
        }
        self.disturbed(until);
    }

    /// The first thing that was not as it must be.
    #[must_use]
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// What each node did since it was to be quiet.
    #[must_use]
    pub fn work(&self) -> BTreeMap<String, Work> {
        self.nodes.iter().map(|(name, node)| (name.clone(), node.work)).collect()
    }

    pub(crate) fn broken(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// Sees what reaches a node.
    #[expect(clippy::wildcard_enum_match_arm, reason = "only what is watched")]
    pub fn input(&mut self, at: Duration, name: &str, input: &Input) {
        if matches!(
            input,
            Input::PullRequested { .. } | Input::PullAbandoned { .. } | Input::FetchCompleted { .. }
        ) {
            self.stirred_at = self.stirred_at.max(at);
        }
        // Most of what happens is of no interest: it is told apart before the node is looked up.
        match input {
            Input::PullRequested { pull, key, digest, kind, .. } => {
                let wait = match kind {
                    PullKind::Manifest | PullKind::Head => ANSWER_MAX,
                    PullKind::Blob => BLOB_ANSWER_MAX,
                };
                let watched = WatchedPull { key: *key, digest: *digest, deadline: at + wait, moved_at: None };
                let Some(node) = self.nodes.get_mut(name) else { return };
                node.pulls.insert(*pull, watched);
                self.due.insert(name.to_owned());
            }
            Input::FetchProgressed { pull, bytes, starved, .. } if *bytes > 0 || starved.is_zero() => {
                let node = self.nodes.get_mut(name);
                if let Some(watched) = node.and_then(|node| node.pulls.get_mut(pull)) {
                    watched.moved_at = Some(at);
                }
            }
            Input::PullAbandoned { pull } | Input::FetchCompleted { pull, .. } => {
                let Some(node) = self.nodes.get_mut(name) else { return };
                node.pulls.remove(pull);
            }
            _ => {}
        }
    }

    /// Sees what a node wants done.
    #[expect(clippy::wildcard_enum_match_arm, reason = "only what is watched")]
    pub fn output(&mut self, at: Duration, name: &str, output: &Output) {
        let announce = match output {
            Output::Send { message, .. } => announcement(message),
            Output::Reply { .. } => return,
            _ => None,
        };
        if self.is_sparing && matches!(output, Output::Send { .. }) && announce.is_none() {
            return;
        }
        let is_quiet = at >= self.quiet_from;
        let stranger = match output {
            Output::Fetch { peer, .. } => self.is_no_member(at, name, peer),
            _ => None,
        };
        let Some(node) = self.nodes.get_mut(name) else { return };
        if is_quiet {
            node.work.count(output);
        }
        if at >= self.stirred_at + RESTS_AFTER {
            if node.rest.0 != self.stirred_at {
                node.rest = (self.stirred_at, Work::default());
            }
            node.rest.1.count(output);
        }
        match output {
            Output::Send { to, .. } => {
                if let Some(announce) = announce {
                    node.announced.say(at, *to, &announce, &node.containerd);
                    if node.announced.is_unfounded() {
                        self.due.insert(name.to_owned());
                    }
                }
            }
            Output::Notice(Notice::MemberDown { peer }) => node.announced.forget(peer),
            _ => {}
        }
        let mut view_changed = false;
        let broken = match output {
            Output::Notice(Notice::MemberUp { member }) => {
                view_changed = node.sees.insert(member.peer);
                None
            }
            Output::Notice(Notice::MemberDown { peer }) => {
                view_changed = node.sees.remove(peer);
                None
            }
            Output::Send { to, .. } if *to == node.me => Some("sends itself a message".to_owned()),
            Output::Fetch { peer, .. } if *peer == node.me => Some("asks itself for content".to_owned()),
            Output::Fetch { .. } if stranger.is_some() => stranger,
            Output::Fetch { pull, .. } if !node.pulls.contains_key(pull) => {
                Some(format!("asks for content for pull {pull}, which is over"))
            }
            Output::Forward { pull, .. } => match node.pulls.get_mut(pull) {
                Some(pull) => {
                    pull.moved_at = Some(at);
                    None
                }
                None => Some(format!("answers pull {pull}, which is over")),
            },
            Output::Refuse { pull, reason, .. } => match node.pulls.remove(pull) {
                Some(watched) if watched.moved_at.is_some() => Some(format!("answers pull {pull} twice")),
                Some(watched) if *reason == RefuseReason::NobodyHasIt => {
                    self.holder_missed(at, name, &watched)
                }
                Some(_) => None,
                None => Some(format!("answers pull {pull}, which is over")),
            },
            Output::Truncate { pull, .. } => match node.pulls.remove(pull) {
                Some(watched) if watched.moved_at.is_some() => None,
                Some(_) => Some(format!("ends the body of pull {pull} before it began")),
                None => Some(format!("ends pull {pull}, which is over")),
            },
            Output::ServeContent { digest, .. } => {
                node.serves.insert(*digest, at);
                if !node.containerd.has(&[*digest]) {
                    node.gone.insert(*digest, at);
                    self.due.insert(name.to_owned());
                }
                None
            }
            Output::StopServingContent { digest } => {
                node.serves.remove(digest);
                node.gone.remove(digest);
                None
            }
            Output::ServeTag { name, .. } => {
                node.tags.insert(Key::of(name), at);
                None
            }
            Output::StopServingTag { name } => {
                node.tags.remove(&Key::of(name));
                None
            }
            _ => None,
        };
        if let Some(what) = broken {
            self.broken(format!("{name} {what}"));
        }
        if view_changed {
            self.calm_since = self.calm_since.map(|_| at);
        }
    }

    /// Why a peer should not be asked for content.
    fn is_no_member(&self, at: Duration, asker: &str, peer: &PeerId) -> Option<String> {
        let known = |name| self.nodes.get_key_value(name);
        let Some((holder, node)) = self.by_peer.get(peer).and_then(known) else {
            return Some(format!("asks {peer} for content, which is no node"));
        };
        let asker_since = self.nodes.get(asker).map_or(at, |asker| asker.excused_until);
        let since = node.ended_at.max(self.whole_since?).max(asker_since);
        let is_known = !node.running && since + DEAD_ASKED_MAX < at;
        is_known.then(|| format!("asks {holder} for content, which ended at {:?}", node.ended_at))
    }

    /// Whether nodes to which nothing happened any more were idle.
    ///
    /// # Errors
    ///
    /// When one was not.
    pub fn at_rest(&self, now: Duration) -> Result<(), String> {
        let Some(rest) = now.checked_sub(self.stirred_at + RESTS_AFTER) else { return Ok(()) };
        if self.calm_since.is_none() || rest < REST_MIN {
            return Ok(());
        }
        let seconds = rest.as_secs() + 1;
        for (name, node) in self.nodes.iter().filter(|(_, node)| node.running) {
            let (since, work) = node.rest;
            let most = Work {
                sends: RESTING_SENDS_PER_SECOND_MAX * seconds,
                bytes_sent: u64::MAX,
                // A resync each five to ten minutes, and what cannot be read again and again.
                lists: 2 + seconds / 300,
                inspections: 20 + seconds / 60,
                reads: 20 + seconds / 600,
                // Ten at once, then one a minute, with thirty dials each.
                resolves: 11 + seconds / 60,
                dials: 30 * (11 + seconds / 60),
            };
            if since == self.stirred_at && !work.is_within(&most) {
                return Err(format!(
                    "{name} does too much in {rest:?} of rest: {work:?}, more than {most:?}"
                ));
            }
        }
        Ok(())
    }

    /// Who was overlooked when a node said that nobody has it.
    fn holder_missed(&self, at: Duration, asker: &str, pull: &WatchedPull) -> Option<String> {
        let since = self.calm_since?;
        if since + NOBODY_AFTER > at {
            return None;
        }
        let holds = |node: &Watched| {
            let served = match pull.digest {
                Some(digest) => node.serves.get(&digest),
                None => node.tags.get(&pull.key),
            };
            served.is_some_and(|since| *since + NOBODY_AFTER <= at)
        };
        let mut others = self.nodes.iter().filter(|(name, node)| *name != asker && node.running);
        let holder = others.find(|(_, node)| holds(node) && node.excused_until + NOBODY_AFTER <= at)?.0;
        if !self.is_whole() {
            return None;
        }
        Some(format!("says that nobody has what {holder} has"))
    }

    /// Whether all nodes that run see each other, and nobody else.
    fn is_whole(&self) -> bool {
        let running = || self.nodes.values().filter(|node| node.running);
        let there: BTreeSet<PeerId> = running().map(|node| node.me).collect();
        running().all(|node| node.sees.len() + 1 == there.len() && node.sees.is_subset(&there))
    }

    /// Content appeared in or vanished from a node's containerd.
    pub fn content_changed(&mut self, at: Duration, name: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let containerd = &node.containerd;
        node.gone.retain(|digest, _| !containerd.has(&[*digest]));
        for digest in node.serves.keys().filter(|digest| !containerd.has(&[**digest])) {
            node.gone.entry(*digest).or_insert(at);
        }
        node.announced.compare(at, &node.containerd);
        self.stirred_at = self.stirred_at.max(at);
        self.due.insert(name.to_owned());
    }

    /// A containerd is back: what went while it was away can be known from now on.
    pub fn containerd_started(&mut self, at: Duration, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.gone.values_mut().for_each(|since| *since = at);
        }
    }

    /// Nodes other than `asker` whose process runs and whose containerd has all of an image; none
    /// in large runs, where asking all of them for each pull takes too long.
    #[must_use]
    pub fn holders(&self, asker: &str, image: &Image) -> Vec<String> {
        if self.is_sparing {
            return Vec::new();
        }
        let others = self.nodes.iter().filter(|(name, node)| *name != asker && node.running);
        others.filter(|(_, node)| node.containerd.has_image(image)).map(|(name, _)| name.clone()).collect()
    }

    /// Checks what is late.
    pub fn check(&mut self, at: Duration) {
        let mut late = None;
        let nodes = &self.nodes;
        self.due.retain(|name| {
            nodes.get(name).is_some_and(|node| {
                !node.pulls.is_empty() || !node.gone.is_empty() || node.announced.is_unfounded()
            })
        });
        for name in &self.due {
            let Some(node) = self.nodes.get_mut(name) else { continue };
            if let Some(what) = node.announced.late(at, node.excused_until, &node.containerd) {
                late = Some(format!("{name} {what}"));
            }
            let excuse = |due: Duration, slack: Duration| due.max(node.excused_until + slack);
            for (pull, watched) in &node.pulls {
                let (due, what) = match watched.moved_at {
                    None => (watched.deadline, "has not answered in time"),
                    Some(at) => (excuse(at + PAUSE_MAX, PAUSE_MAX), "neither goes on with nor ends"),
                };
                if due < at {
                    late = Some(format!("{name} {what} pull {pull}"));
                }
            }
            for (digest, since) in &node.gone {
                if excuse(*since + GONE_MAX, GONE_MAX) < at && node.containerd.is_running() {
                    late = Some(format!("{name} serves {digest}, which has been gone since {since:?}"));
                }
            }
        }
        if let Some(what) = late {
            self.broken(what);
        }
    }

    /// Checks what a node says of itself.
    pub fn report(&mut self, name: &str, report: &Report) {
        let sizes = [
            ("lookups", report.directory.lookups_in_flight, LOOKUPS_MAX),
            ("pulls", report.pulls, PULLS_MAX),
            ("inspections", report.inventory.inspections_pending, INSPECTIONS_MAX),
            ("peers", report.peers.len(), PEERS_MAX),
            ("directory entries", report.directory.entries_owned, ENTRIES_MAX),
        ];
        for (what, size, max) in sizes {
            if size > max {
                self.broken(format!("{name} has {size} {what}, more than {max}"));
            }
        }
    }
}

impl Work {
    const fn is_within(&self, most: &Self) -> bool {
        self.sends <= most.sends
            && self.bytes_sent <= most.bytes_sent
            && self.lists <= most.lists
            && self.inspections <= most.inspections
            && self.reads <= most.reads
            && self.resolves <= most.resolves
            && self.dials <= most.dials
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "only what is work for others")]
    fn count(&mut self, output: &Output) {
        match output {
            Output::Send { message, .. } => {
                self.sends += 1;
                self.bytes_sent += message.len() as u64;
            }
            Output::List { .. } => self.lists += 1,
            Output::Inspect { .. } => self.inspections += 1,
            Output::ReadManifest { .. } => self.reads += 1,
            Output::ResolveBootstrap { .. } => self.resolves += 1,
            Output::Dial { .. } => self.dials += 1,
            _ => {}
        }
    }
}
