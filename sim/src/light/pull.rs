//! Pulls: a containerd that asks its mirror for everything first and the registry next, and
//! peers that answer and send bodies.

use std::{collections::BTreeMap, time::Duration};

use spegel_core::{
    AttemptId, FetchError, Input, Key, PeerId, PullId, PullKind,
    oci::{Descriptor, Digest},
};

use super::{Event, Index, NEWS_LATENCY, Pulled, Reach, World};
use crate::{
    containerd::LABEL_LATENCY,
    kubelet::{RESUMES_MAX, retry_delay},
    scenario::FailedTry,
    upstream::{self, Answer, THROTTLED_TRIES_MAX},
};

/// How fast a node sends unless told otherwise, to all that it sends to together.
pub(crate) const BYTES_PER_SECOND: u64 = 50_000_000;

/// How long containerd waits before it looks whether it is running.
const CONTAINERD_POLL: Duration = Duration::from_secs(1);

/// An image being pulled by one node's containerd.
#[derive(Debug)]
pub(super) struct Client {
    node: Index,
    image: usize,
    began: Duration,
    tried_at: Duration,
    tries: u32,
    tries_max: u32,
    failures: Vec<FailedTry>,
    holders: Vec<String>,
    /// Which of [`RESOLVE`], [`MANIFEST`], and the blobs.
    step: usize,
    got: u64,
    spoilt: bool,
    resumes: u32,
    /// How often the registry answered this request by 429.
    throttled: u32,
    /// Counts what it waits for, so that late news of something else is not taken for it.
    turn: u64,
    waiting: Option<PullId>,
    over: bool,
}

/// containerd asks for the head of a tag's manifest, then for the manifest by its digest, then for
/// each blob in turn.
const RESOLVE: usize = 0;
const MANIFEST: usize = 1;
const BLOBS: usize = 2;

/// A request of containerd to its mirror.
#[derive(Debug)]
pub(super) struct Pull {
    client: usize,
    tag: Option<String>,
    digest: Option<Digest>,
    /// Where in the content the requested body begins.
    offset: u64,
    attempts: BTreeMap<AttemptId, Attempt>,
    forwarding: Option<AttemptId>,
    /// Bytes of the body given to the client.
    sent: u64,
}

#[derive(Debug)]
struct Attempt {
    holder: Index,
    holder_life: u64,
    /// What the holder sends in all, and how much of it has come.
    body_bytes: u64,
    came: u64,
}

impl Pull {
    pub(super) fn cancel(&mut self, attempt: AttemptId) {
        self.attempts.remove(&attempt);
        if self.forwarding == Some(attempt) {
            self.forwarding = None;
        }
    }
}

impl World<'_> {
    // --- containerd ---------------------------------------------------------------------------

    pub(super) fn begin_client(&mut self, index: usize) {
        let plan = &self.plan.pulls[index];
        let node = self.index_of(&plan.node);
        let image = self.plan.images.iter().position(|image| image.name == plan.image);
        let image = image.expect("a scenario's pulls name its own images");
        if !self.machines[node].powered {
            return;
        }
        self.note(node, &format!("pull {}", plan.image));
        let image_plan = &self.plan.images[image];
        self.machines[node].containerd.lease(image_plan);
        let holders = self.watch.holders(&plan.node, image_plan);
        let client = Client {
            node,
            image,
            began: self.now,
            tried_at: self.now,
            tries: 1,
            tries_max: plan.tries_max,
            failures: Vec::new(),
            holders,
            step: RESOLVE,
            got: 0,
            spoilt: false,
            resumes: 0,
            throttled: 0,
            turn: 0,
            waiting: None,
            over: false,
        };
        self.clients.push(client);
        self.advance(self.clients.len() - 1, 0);
    }

    fn wanted(&self, client: &Client) -> Option<Descriptor> {
        let image = &self.plan.images[client.image];
        match client.step {
            RESOLVE | MANIFEST => Some(image.manifest.clone()),
            step => image.blobs.get(step - BLOBS).cloned(),
        }
    }

    fn again(&mut self, client: usize, delay: Duration) {
        self.clients[client].turn += 1;
        let turn = self.clients[client].turn;
        self.after(delay, Event::Client { client, turn });
    }

    /// The next step of a pull.
    pub(super) fn advance(&mut self, client: usize, turn: u64) {
        let it = &self.clients[client];
        if it.over || it.turn != turn {
            return;
        }
        let node = it.node;
        let machine = &self.machines[node];
        if !machine.containerd.is_running() {
            return self.again(client, CONTAINERD_POLL);
        }
        let image = &self.plan.images[it.image];
        if let Some(got) = it.step.checked_sub(BLOBS) {
            let got = got.checked_sub(1).map_or(&image.manifest, |blob| &image.blobs[blob]);
            machine.containerd.label(&got.digest, image);
        }
        let Some(wanted) = self.wanted(it) else { return self.complete(client) };
        if it.step != RESOLVE && machine.containerd.has(&[wanted.digest]) {
            self.clients[client].step += 1;
            return self.again(client, Duration::ZERO);
        }
        if machine.containerd.bypasses_mirror() {
            return self.go_upstream(client);
        }
        let tag = (it.step == RESOLVE).then(|| image.name.clone());
        let digest = if tag.is_some() { None } else { Some(wanted.digest) };
        let offset = it.got;
        let kind = match it.step {
            RESOLVE => PullKind::Head,
            MANIFEST => PullKind::Manifest,
            _ => PullKind::Blob,
        };
        if it.resumes >= RESUMES_MAX {
            return self.fail(client, "a body ended early too often without progress");
        }
        let Some(process) = &mut self.machines[node].process else { return self.go_upstream(client) };
        let local = tag.as_ref().map_or(digest, |tag| process.tags.get(tag).copied());
        if local.is_some_and(|local| process.sizes.contains_key(&local)) {
            return self.commit(client);
        }
        process.next_pull += 1;
        let pull = PullId(process.next_pull);
        let key = tag.as_ref().map_or_else(|| Key::of_digest(&wanted.digest), |tag| Key::of(tag));
        let (attempts, forwarding) = (BTreeMap::new(), None);
        process.pulls.insert(pull, Pull { client, tag, digest, offset, attempts, forwarding, sent: 0 });
        self.clients[client].waiting = Some(pull);
        self.clients[client].turn += 1;
        let whole = kind != PullKind::Head && offset == 0;
        self.handle(node, Input::PullRequested { pull, key, digest, kind, whole });
    }

    /// What was asked for is here in whole.
    fn commit(&mut self, client: usize) {
        let it = &mut self.clients[client];
        it.waiting = None;
        it.resumes = 0;
        it.throttled = 0;
        it.got = 0;
        if it.step == RESOLVE {
            it.step = MANIFEST;
            return self.again(client, NEWS_LATENCY);
        }
        if std::mem::take(&mut it.spoilt) {
            return self.fail(client, "wrong bytes");
        }
        let node = it.node;
        let Some(wanted) = self.wanted(&self.clients[client]) else { return };
        let content = self.plan.images[self.clients[client].image].content(&wanted.digest).cloned();
        let news = self.machines[node].containerd.store(wanted.digest, content.unwrap_or_default());
        self.tell(node, news);
        self.clients[client].step += 1;
        self.again(client, LABEL_LATENCY);
    }

    fn complete(&mut self, client: usize) {
        let it = &self.clients[client];
        let (node, image) = (it.node, &self.plan.images[it.image]);
        let news = self.machines[node].containerd.name_image(&image.name, image.manifest.clone());
        self.tell(node, news);
        self.end_client(client, None);
    }

    fn fail(&mut self, client: usize, cause: &str) {
        let it = &mut self.clients[client];
        (it.step, it.got, it.resumes, it.throttled, it.waiting) = (RESOLVE, 0, 0, 0, None);
        if it.tries >= it.tries_max {
            return self.end_client(client, Some(cause.to_owned()));
        }
        it.failures.push(FailedTry { began: it.tried_at, ended: self.now, cause: cause.to_owned() });
        let delay = retry_delay(it.tries);
        it.tries += 1;
        it.tried_at = self.now + delay;
        self.note(self.clients[client].node, &format!("pull failed, again later: {cause}"));
        self.again(client, delay);
    }

    fn end_client(&mut self, client: usize, error: Option<String>) {
        let it = &mut self.clients[client];
        it.over = true;
        let (failures, holders) = (std::mem::take(&mut it.failures), std::mem::take(&mut it.holders));
        let (node, image) = (it.node, self.plan.images[it.image].name.clone());
        self.machines[node].containerd.release(&self.plan.images[it.image]);
        let pulled = Pulled {
            node: self.machines[node].name.clone(),
            image,
            at: it.began,
            ended_at: self.now,
            took: self.now.saturating_sub(it.tried_at),
            tries: it.tries,
            failures,
            holders,
            error,
        };
        self.trace.note(self.now, &pulled.node, &pulled.to_string());
        self.outcome.pulls.push(pulled);
    }

    fn go_upstream(&mut self, client: usize) {
        let it = &mut self.clients[client];
        it.waiting = None;
        it.turn += 1;
        let turn = it.turn;
        self.after(upstream::LATENCY, Event::Upstream { client, turn });
    }

    pub(super) fn arrive_upstream(&mut self, client: usize, turn: u64) {
        let it = &self.clients[client];
        if it.over || it.turn != turn {
            return;
        }
        match self.upstream.answer(self.now) {
            Answer::Given => self.commit(client),
            Answer::Unreachable => self.fail(client, "the registry is cut off"),
            Answer::Throttled => {
                let it = &mut self.clients[client];
                it.throttled += 1;
                if it.throttled < THROTTLED_TRIES_MAX {
                    self.go_upstream(client);
                } else {
                    self.fail(client, "429 Too Many Requests");
                }
            }
        }
    }

    /// The mirror's process is gone: containerd's requests to it fail, and it goes upstream.
    pub(super) fn orphan_clients(&mut self, node: Index) {
        for client in 0..self.clients.len() {
            let it = &mut self.clients[client];
            if it.node == node && !it.over && it.waiting.take().is_some() {
                self.again(client, NEWS_LATENCY);
            }
        }
    }

    /// The machine is gone, its pulls with it.
    pub(super) fn lose_clients(&mut self, node: Index) {
        for client in self.clients.iter_mut().filter(|client| client.node == node && !client.over) {
            client.over = true;
            self.machines[node].containerd.release(&self.plan.images[client.image]);
        }
    }

    // --- orders of the core ---------------------------------------------------------------------

    pub(super) fn refuse(&mut self, node: Index, pull: PullId) {
        let process = self.machines[node].process.as_mut();
        let Some(pull) = process.and_then(|process| process.pulls.remove(&pull)) else { return };
        self.go_upstream(pull.client);
    }

    pub(super) fn truncate(&mut self, node: Index, pull: PullId) {
        let process = self.machines[node].process.as_mut();
        let Some(pull) = process.and_then(|process| process.pulls.remove(&pull)) else { return };
        let it = &mut self.clients[pull.client];
        it.resumes = if pull.sent > 0 { 0 } else { it.resumes + 1 };
        it.got += pull.sent;
        it.waiting = None;
        self.again(pull.client, NEWS_LATENCY);
    }

    pub(super) fn ask(
        &mut self,
        node: Index,
        pull: PullId,
        attempt: AttemptId,
        peer: &PeerId,
        skip: u64,
        check_bytes_max: u64,
    ) {
        let life = self.machines[node].life;
        let Some(holder) = self.by_peer.get(peer).copied() else { return };
        self.outcome.fetches.push((self.now, self.machines[holder].name.clone()));
        let process = self.machines[node].process.as_mut();
        if let Some(pull) = process.and_then(|process| process.pulls.get_mut(&pull)) {
            pull.attempts.insert(attempt, Attempt { holder, holder_life: 0, body_bytes: 0, came: 0 });
        }
        // A connection, then the request.
        let delay = self.latency() + self.latency() + self.latency();
        self.after(delay, Event::Ask { node, life, pull, attempt, holder, skip, check_bytes_max });
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one event")]
    pub(super) fn arrive_ask(
        &mut self,
        node: Index,
        life: u64,
        pull: PullId,
        attempt: AttemptId,
        holder: Index,
        skip: u64,
        check_bytes_max: u64,
    ) {
        match self.reach(node, holder) {
            Reach::Open => {}
            Reach::Silent => return,
            Reach::Later(at) => {
                return self.at(at, Event::Ask { node, life, pull, attempt, holder, skip, check_bytes_max });
            }
            Reach::Refused => {
                let input = Input::FetchFailed { pull, attempt, cause: FetchError::Connect };
                let latency = self.latency();
                return self.after(latency, Event::Input { node, life, input });
            }
        }
        if self.machines[node].life != life {
            return;
        }
        let (holder_life, served) = (self.machines[holder].life, self.served(node, pull, holder));
        let corrupt = self.machines[holder].corrupt;
        let backlog_bytes = served.map(|_| self.backlog(holder));
        let process = self.machines[node].process.as_mut();
        let Some(it) = process.and_then(|process| process.pulls.get_mut(&pull)) else { return };
        let Some(asked) = it.attempts.get_mut(&attempt) else { return };
        let input = match served {
            Some(size) => {
                asked.holder_life = holder_life;
                // A head, which alone is asked for by tag, has no body.
                let size = if it.tag.is_some() { 0 } else { size };
                asked.body_bytes = size.saturating_sub(it.offset + skip);
                if corrupt && asked.body_bytes > 0 && asked.body_bytes <= check_bytes_max {
                    let input = Input::FetchFailed { pull, attempt, cause: FetchError::WrongContent };
                    let latency = self.latency();
                    return self.after(latency, Event::Input { node, life, input });
                }
                let body_bytes = asked.body_bytes;
                Input::FetchAnswered { pull, attempt, body_bytes, backlog_bytes }
            }
            None => Input::FetchFailed { pull, attempt, cause: FetchError::NotFound },
        };
        let latency = self.latency();
        self.after(latency, Event::Input { node, life, input });
    }

    /// The size of what a pull wants, if the holder serves it.
    fn served(&self, node: Index, pull: PullId, holder: Index) -> Option<u64> {
        let it = self.machines[node].process.as_ref()?.pulls.get(&pull)?;
        let process = self.machines[holder].process.as_ref()?;
        let digest = match &it.tag {
            Some(tag) => *process.tags.get(tag)?,
            None => it.digest?,
        };
        let size = process.sizes.get(&digest)?;
        self.machines[holder].containerd.has(&[digest]).then_some(*size)
    }

    pub(super) fn forward(&mut self, node: Index, pull: PullId, attempt: AttemptId, interval: Duration) {
        let life = self.machines[node].life;
        let process = self.machines[node].process.as_mut();
        let Some(it) = process.and_then(|process| process.pulls.get_mut(&pull)) else { return };
        it.forwarding = Some(attempt);
        let Some(body) = it.attempts.get(&attempt) else { return };
        let (holder, left) = (body.holder, body.body_bytes);
        let delay = flow_time(self.rate(holder), left).min(interval);
        self.after(delay, Event::Body { node, life, pull, attempt, interval });
    }

    /// What a machine was asked for and answered, since its process began.
    fn asked_of(&self, holder: Index) -> impl Iterator<Item = (&Pull, AttemptId, &Attempt)> {
        let processes = self.machines.iter().filter_map(|machine| machine.process.as_ref());
        let pulls = processes.flat_map(|process| process.pulls.values());
        let attempts = pulls.flat_map(|pull| pull.attempts.iter().map(move |(id, it)| (pull, *id, it)));
        let life = self.machines[holder].life;
        attempts.filter(move |(_, _, it)| it.holder == holder && it.holder_life == life)
    }

    /// How many bytes a machine has still to send.
    fn backlog(&self, holder: Index) -> u64 {
        self.asked_of(holder).map(|(_, _, it)| it.body_bytes - it.came).sum()
    }

    /// How fast each body comes from a machine: it sends to all alike.
    fn rate(&self, holder: Index) -> u64 {
        let flowing = self.asked_of(holder).filter(|(pull, id, _)| pull.forwarding == Some(*id)).count();
        (self.machines[holder].bytes_per_second / (flowing as u64).max(1)).max(1)
    }

    /// Some of a body has flowed, or ought to have.
    pub(super) fn flow(
        &mut self,
        node: Index,
        life: u64,
        pull: PullId,
        attempt: AttemptId,
        interval: Duration,
    ) {
        if self.machines[node].life != life {
            return;
        }
        let process = self.machines[node].process.as_ref();
        let Some(it) = process.and_then(|process| process.pulls.get(&pull)) else { return };
        if it.forwarding != Some(attempt) {
            return;
        }
        let Some(body) = it.attempts.get(&attempt) else { return };
        let (holder, holder_life, left) = (body.holder, body.holder_life, body.body_bytes - body.came);
        if matches!(self.reach(node, holder), Reach::Silent | Reach::Later(_)) {
            self.handle(node, Input::FetchProgressed { pull, attempt, bytes: 0, starved: interval });
            return self.after(interval, Event::Body { node, life, pull, attempt, interval });
        }
        if self.machines[holder].life != holder_life {
            let input = Input::FetchFailed { pull, attempt, cause: FetchError::Interrupted };
            return self.handle(node, input);
        }
        let rate = self.rate(holder);
        let bytes = if flow_time(rate, left) <= interval {
            left
        } else {
            let flowed = u128::from(rate) * interval.as_micros() / 1_000_000;
            u64::try_from(flowed).unwrap_or(left).clamp(1, left)
        };
        let corrupt = self.machines[holder].corrupt;
        let process = self.machines[node].process.as_mut();
        let Some(it) = process.and_then(|process| process.pulls.get_mut(&pull)) else { return };
        it.sent += bytes;
        let client = it.client;
        if let Some(body) = it.attempts.get_mut(&attempt) {
            body.came += bytes;
        }
        self.clients[client].spoilt |= corrupt && bytes > 0;
        if bytes < left {
            // It is always the holder that is waited for: clients here take what comes at once.
            self.handle(node, Input::FetchProgressed { pull, attempt, bytes, starved: interval });
            let delay = flow_time(rate, left - bytes).min(interval);
            return self.after(delay, Event::Body { node, life, pull, attempt, interval });
        }
        if let Some(process) = &mut self.machines[node].process {
            process.pulls.remove(&pull);
        }
        self.handle(node, Input::FetchCompleted { pull, attempt, bytes });
        if let Some(meter) = &mut self.meter {
            meter.measured.from_peers += 1;
        }
        self.commit(client);
    }
}

fn flow_time(bytes_per_second: u64, bytes: u64) -> Duration {
    // Rounded up, lest the last byte never comes.
    Duration::from_micros(bytes.saturating_mul(1_000_000) / bytes_per_second + 1)
}
