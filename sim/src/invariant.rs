//! What must be true after every step, whatever the scenario: seen from the inputs and outputs
//! of all nodes, and from what the driver knows of the world.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use spegel_core::{Input, Key, Output, PeerId, PullId, PullKind, RefuseReason, Report, oci::Digest};

use crate::containerd::Containerd;

/// When containerd must have the beginning of an answer: the core's deadlines, and a little for
/// the ticks of the driver.
const ANSWER_MAX: Duration = Duration::from_millis(1050);
const BLOB_ANSWER_MAX: Duration = Duration::from_millis(2050);

/// How long content that has gone from containerd may still be served.
const GONE_MAX: Duration = Duration::from_secs(3);

/// After a change of the cluster, how long until "nobody has it" must be true. Detecting a death
/// takes SWIM some five seconds, and an owner says that it does not know for ten more.
const NOBODY_AFTER: Duration = Duration::from_secs(20);

/// Owners keep at most so many holders of a key; larger clusters are not expected to know all.
const HOLDERS_KEPT_MAX: usize = 64;

/// How many owners each key has.
const OWNERS: usize = 3;

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
    violation: Option<String>,
    /// Nodes that have something to do by a deadline.
    due: BTreeSet<String>,
}

#[derive(Debug)]
struct Watched {
    me: PeerId,
    containerd: Containerd,
    running: bool,
    pulls: BTreeMap<PullId, WatchedPull>,
    /// What it serves, and since when.
    serves: BTreeMap<Digest, Duration>,
    tags: BTreeMap<Key, Duration>,
    /// What it serves although it has gone, and since when.
    gone: BTreeMap<Digest, Duration>,
    /// The process was paused until then.
    excused_until: Duration,
    work: Work,
}

#[derive(Debug)]
struct WatchedPull {
    key: Key,
    digest: Option<Digest>,
    deadline: Duration,
    answered: bool,
}

impl Watch {
    /// Watches nothing yet; counts work from `quiet_from` on.
    #[must_use]
    pub const fn new(quiet_from: Duration) -> Self {
        Self {
            nodes: BTreeMap::new(),
            quiet_from,
            calm_since: Some(Duration::ZERO),
            violation: None,
            due: BTreeSet::new(),
        }
    }

    /// A process began on a node.
    pub fn started(&mut self, at: Duration, node: &str, me: PeerId, containerd: &Containerd) {
        let work = self.nodes.get(node).map(|node| node.work).unwrap_or_default();
        let watched = Watched {
            me,
            containerd: containerd.clone(),
            running: true,
            pulls: BTreeMap::new(),
            serves: BTreeMap::new(),
            tags: BTreeMap::new(),
            gone: BTreeMap::new(),
            excused_until: Duration::ZERO,
            work,
        };
        self.nodes.insert(node.to_owned(), watched);
        self.disturbed(at);
    }

    /// A process ended, with all it knew.
    pub fn ended(&mut self, at: Duration, node: &str) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.running = false;
            node.pulls.clear();
            node.serves.clear();
            node.tags.clear();
            node.gone.clear();
        }
        self.disturbed(at);
    }

    /// The cluster changed at this moment.
    pub fn disturbed(&mut self, at: Duration) {
        self.calm_since = self.calm_since.map(|_| at);
    }

    /// A fault lasts from now on, until [`Watch::calm`].
    pub const fn uneasy(&mut self) {
        self.calm_since = None;
    }

    /// No fault lasts any more.
    pub const fn calm(&mut self, at: Duration) {
        self.calm_since = Some(at);
    }

    /// A process does not run between now and then: what is due is due after.
    pub fn frozen(&mut self, node: &str, until: Duration) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.excused_until = node.excused_until.max(until);
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
        // Most of what happens is of no interest: it is told apart before the node is looked up.
        match input {
            Input::PullRequested { pull, key, digest, kind, .. } => {
                let wait = match kind {
                    PullKind::Manifest | PullKind::Head => ANSWER_MAX,
                    PullKind::Blob => BLOB_ANSWER_MAX,
                };
                let watched =
                    WatchedPull { key: *key, digest: *digest, deadline: at + wait, answered: false };
                let Some(node) = self.nodes.get_mut(name) else { return };
                node.pulls.insert(*pull, watched);
                self.due.insert(name.to_owned());
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
        let is_quiet = at >= self.quiet_from;
        let Some(node) = self.nodes.get_mut(name) else { return };
        if is_quiet {
            node.work.count(output);
        }
        let broken = match output {
            Output::Send { to, .. } if *to == node.me => Some("sends itself a message".to_owned()),
            Output::Fetch { peer, .. } if *peer == node.me => Some("asks itself for content".to_owned()),
            Output::Fetch { pull, .. } if !node.pulls.contains_key(pull) => {
                Some(format!("asks for content for pull {pull}, which is over"))
            }
            Output::Forward { pull, .. } => match node.pulls.get_mut(pull) {
                Some(pull) => {
                    pull.answered = true;
                    None
                }
                None => Some(format!("answers pull {pull}, which is over")),
            },
            Output::Refuse { pull, reason, .. } => match node.pulls.remove(pull) {
                Some(watched) if watched.answered => Some(format!("answers pull {pull} twice")),
                Some(watched) if *reason == RefuseReason::NobodyHasIt => {
                    self.holder_missed(at, name, &watched)
                }
                Some(_) => None,
                None => Some(format!("answers pull {pull}, which is over")),
            },
            Output::Truncate { pull, .. } => match node.pulls.remove(pull) {
                Some(watched) if watched.answered => None,
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
        Some(format!("says that nobody has what {holder} has"))
    }

    /// Content appeared in or vanished from a node's containerd.
    pub fn content_changed(&mut self, at: Duration, name: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let containerd = &node.containerd;
        node.gone.retain(|digest, _| !containerd.has(&[*digest]));
        for digest in node.serves.keys().filter(|digest| !containerd.has(&[**digest])) {
            node.gone.entry(*digest).or_insert(at);
        }
        self.due.insert(name.to_owned());
    }

    /// Checks what is late.
    pub fn check(&mut self, at: Duration) {
        let mut late = None;
        let nodes = &self.nodes;
        self.due.retain(|name| {
            nodes.get(name).is_some_and(|node| !node.pulls.is_empty() || !node.gone.is_empty())
        });
        for (name, node) in self.due.iter().filter_map(|name| self.nodes.get_key_value(name)) {
            let excuse = |due: Duration, slack: Duration| due.max(node.excused_until + slack);
            for (pull, watched) in node.pulls.iter().filter(|(_, pull)| !pull.answered) {
                if excuse(watched.deadline, BLOB_ANSWER_MAX) < at {
                    late = Some(format!("{name} has not answered pull {pull} by its deadline"));
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

/// When all is well again, what is held, what is announced, and what owners believe agree.
///
/// # Errors
///
/// When it does not.
pub fn agreement(reports: &BTreeMap<String, Report>) -> Result<(), String> {
    let alive: BTreeSet<PeerId> = reports.values().map(|report| report.me.peer).collect();
    for (name, report) in reports {
        let seen: BTreeSet<PeerId> =
            report.members.iter().map(|member| member.peer).chain([report.me.peer]).collect();
        if seen != alive {
            let (missing, extra) = (alive.difference(&seen).count(), seen.difference(&alive).count());
            return Err(format!(
                "{name} does not see {missing} nodes that are there, and sees {extra} that are not"
            ));
        }
        if report.directory.owners_unsynced > 0 || report.directory.holders_incomplete > 0 {
            return Err(format!("{name} has not reconciled: {:?}", report.directory));
        }
    }
    let held: usize = reports.values().map(|report| report.directory.keys_held).sum();
    let owned: usize = reports.values().map(|report| report.directory.entries_owned).sum();
    let expected = held * OWNERS.min(alive.len());
    if owned != expected && alive.len() <= HOLDERS_KEPT_MAX {
        return Err(format!("nodes hold {held} keys, owners know {owned} times of them, not {expected}"));
    }
    Ok(())
}
