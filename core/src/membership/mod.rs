//! Decides who is a member of the cluster and alive: SWIM (gossip, probes, suspicion) by
//! `foca`, in terms of this crate. Never does I/O and never decides whom to dial first: the
//! bootstrapper finds a first peer, `node.rs` calls in and routes packets inside control
//! messages.
//!
//! What this adds to foca: a packet must come from the peer it names as its source; tables are
//! bounded; a node that changes its identity (new addresses, declared down while it lived,
//! clock set back before a restart) introduces itself until somebody answers; a process that
//! was frozen does not blame its peers for the time it missed.

mod codec;
mod lives;
#[cfg(test)]
mod tests;
mod timers;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU8, NonZeroUsize},
    sync::Arc,
    time::{Duration, Instant},
};

use foca::{AccumulatingRuntime, Foca, Message, NoCustomBroadcast, OwnedNotification, PeriodicParams, State};
use rand::rngs::ChaCha8Rng;

use self::{
    codec::{CborCodec, CodecError, Id, Packet, usable_addrs},
    lives::Lives,
    timers::Timers,
    view::View,
};
use crate::{Member, PeerId, message::Fingerprint, output::soonest, rng::Rng};

/// How often each node probes one other. Shorter costs every node messages for ever; longer and
/// a dead peer is asked for content for longer. A death is seen after about one period, proven
/// after another and [`SUSPECT_TIME`].
const PROBE_PERIOD: Duration = Duration::from_secs(1);

/// How long a probe waits for its answer before others are asked to probe too. Shorter than a
/// busy node takes and every probe becomes eight messages; must leave time for the indirect
/// probe within [`PROBE_PERIOD`].
const PROBE_RTT: Duration = Duration::from_millis(300);

/// How many others are asked to probe. Fewer and one bad path makes a suspect; more are messages
/// without news.
const INDIRECT_PROBES: NonZeroUsize = NonZeroUsize::new(3).expect("not zero");

/// How long a suspect of a cluster of fewer than 100 may take to object; grows by as much for
/// every further factor of ten ([`suspect_time`]). Shorter than gossip takes to the suspect and
/// back, and living nodes are declared down; longer and pulls run into dead ones.
const SUSPECT_TIME: Duration = Duration::from_secs(2);

/// How often each node passes on each piece of news. A node misses one with a chance of about
/// `exp` of minus this, and if that was a death, it finds out by its own probe only, which takes
/// as many seconds as there are members. So fewer leave stragglers in clusters of hundreds (10
/// did in the tests); more repeat what all know.
const TRANSMISSIONS_MAX: NonZeroU8 = NonZeroU8::new(15).expect("not zero");

/// How often news is passed on besides probes, and to how many. Costs nothing while there is no
/// news. Slower and a join or leave takes seconds to get round.
const GOSSIP_INTERVAL: Duration = Duration::from_millis(250);
const GOSSIP_FANOUT: NonZeroUsize = NonZeroUsize::new(2).expect("not zero");

/// How often a random member that is down is greeted, so that the halves of a partition find
/// each other. Rarer and they stay apart longer; more often are dials to the dead.
const ANNOUNCE_DOWN_INTERVAL: Duration = Duration::from_secs(20);

/// How long a member that is down is remembered. Shorter than gossip lives and old news brings
/// it back; longer and a cluster whose nodes come and go remembers thousands. A partition that
/// lasts longer is healed by the bootstrapper's re-check.
const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// Largest packet made or accepted. It travels in a control message over TCP, so no datagram
/// bounds it. Smaller and the answer to a newcomer names few of the members (one takes some 70
/// bytes, so this holds some 200); larger and every such answer costs that much in a big cluster.
pub(crate) const PACKET_SIZE_MAX: usize = 16 * 1024;

/// Most peers known, alive or down. Fewer and larger clusters (Kubernetes stops at 5000 nodes)
/// split at random; more and a peer that invents others takes more memory.
pub(crate) const MEMBERS_MAX: usize = 16 * 1024;

/// Most events waiting, beyond which packets are dropped, as a network may. The caller drains
/// after every call, and one call makes a few packets: reached only if it does not.
const EVENTS_MAX: usize = 4096;

/// How long to wait for an answer after introducing this node under a new identity, before
/// introducing it to another member. Shorter repeats itself to a slow peer; longer and this node
/// is suspected meanwhile.
const INTRODUCE_INTERVAL: Duration = Duration::from_secs(1);

/// How late a timer must be for this process to have been frozen. Shorter than a busy executor
/// delays timers and failure detection slows down under load; longer and a thawed process
/// suspects peers whose answers wait in its socket buffers.
const STALL_MIN: Duration = Duration::from_secs(1);

/// How far ahead of the generation that its process began with (the wall clock, in milliseconds) a
/// node goes to outdo a record of itself that is ahead: of a life whose clock was ahead, or made up.
/// Ten thousand years. Less and a node whose clock was that wrong once stays out until others have
/// forgotten that life; much more, and made-up records could use up all generations.
const GENERATION_LEAD_MAX: u64 = 10_000 * 366 * 24 * 3600 * 1000;

/// Records of others further ahead than this are dropped, lest there be any that their owner cannot
/// outdo, and leave it out for [`FORGET_AFTER`]. Between this and [`GENERATION_LEAD_MAX`] is room
/// for owners whose clocks are behind this node's.
const HEARSAY_LEAD_MAX: u64 = GENERATION_LEAD_MAX / 2;

/// By how much a node outdoes a record of an earlier life of its own. Each change of addresses and
/// each refutation of a death is one more generation, and the last of them may not have reached
/// everybody: by less than one life can add, two lives might come to one generation with different
/// addresses; by more, made-up records use up generations sooner.
const OUTDO_STEP: u64 = 1 << 16;

/// How long after a peer that has the generation of either node wrong was corrected it is corrected
/// again. Two that cannot agree answer each other's corrections for ever, as fast as the network
/// goes if this is too short; longer and a lost correction delays a node's return.
const CORRECT_INTERVAL: Duration = Duration::from_secs(1);

/// Most peers whose last correction is remembered; beyond them none is corrected. Fewer and a node
/// whose clock was set back before its restart waits for members of a large cluster to find it.
const CORRECTED_MAX: usize = 1024;

/// How long a node that does not know its own addresses yet keeps to itself. Shorter than the
/// adapter takes to report them, and others know a member for a moment that nothing can be fetched
/// from; longer and a node that never learns of any stays alone for longer.
const ADDRS_WAIT: Duration = Duration::from_secs(1);

/// What membership wants done, or tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Send a packet; its reply, if any, goes to [`Membership::on_reply`]. Losing it is harmless.
    Send {
        /// Whom to.
        to: PeerId,
        /// Where it may be reached. Empty: only over an open connection.
        addrs: Vec<SocketAddr>,
        /// The packet, at most [`PACKET_SIZE_MAX`].
        packet: Vec<u8>,
    },
    /// Compare views; the answer, if any, goes to [`Membership::on_compared`]. Losing it is
    /// harmless.
    Compare {
        /// With whom.
        to: PeerId,
        /// Where it may be reached.
        addrs: Vec<SocketAddr>,
        /// This node's view.
        view: Fingerprint,
        /// Whom to tell about, should views differ: members after this one.
        after: Option<PeerId>,
    },
    /// A peer is a member now.
    Up(Member),
    /// A member has a newer generation: restarted, other addresses, or declared down wrongly.
    Changed(Member),
    /// A member left or failed.
    Down(PeerId),
}

/// The bytes are not a packet that this peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed membership packet")]
pub(crate) struct Malformed;

/// Who is alive.
pub(crate) struct Membership {
    foca: Foca<Id, CborCodec, ChaCha8Rng, NoCustomBroadcast>,
    config: foca::Config,
    runtime: AccumulatingRuntime<Id>,
    rng: Rng,
    timers: Timers,
    /// Live members other than this node, as told to the caller.
    members: BTreeMap<PeerId, Arc<Member>>,
    /// Of [`Self::members`].
    lives: Lives,
    /// The generation under which this node was introduced last.
    introduced_as: u64,
    /// Whether a member has addressed this node by its present identity.
    accepted: bool,
    /// When to announce this node to a random member.
    announce_at: Option<Instant>,
    /// Generation that this process began with.
    born_as: u64,
    /// When peers were told last that they have a generation wrong.
    corrected: BTreeMap<PeerId, Instant>,
    /// Whether timers were postponed since any fired.
    postponed: bool,
    /// Gossips next, not before it is due; held back while there is no news.
    gossip_timer: Option<(Instant, foca::Timer<Id>)>,
    /// Who was pinged last, and under which number.
    pinged: Option<(PeerId, foca::ProbeNumber)>,
    view: View,
    /// Until when this node waits for its addresses before others may know it.
    addrs_due: Option<Instant>,
    /// Peers to join by then; as many as the bootstrapper reaches meanwhile.
    joins: BTreeMap<PeerId, SocketAddr>,
    left: bool,
    /// [`MEMBERS_MAX`]; tests make do with fewer.
    members_max: usize,
    events: VecDeque<Event>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.members.keys();
        f.debug_struct("Membership").field("me", self.me()).field("members", &members).finish_non_exhaustive()
    }
}

impl Membership {
    /// A cluster of one.
    pub(crate) fn new(me: Member, seed: u64) -> Self {
        let me = Member { addrs: usable_addrs(me.addrs.iter().copied()).into(), ..me };
        let born_as = me.generation;
        let config = foca::Config {
            probe_period: PROBE_PERIOD,
            probe_rtt: PROBE_RTT,
            num_indirect_probes: INDIRECT_PROBES,
            max_transmissions: TRANSMISSIONS_MAX,
            suspect_to_down_after: SUSPECT_TIME,
            remove_down_after: Some(FORGET_AFTER),
            max_packet_size: NonZeroUsize::new(PACKET_SIZE_MAX).expect("not zero"),
            notify_down_members: true,
            // Its answer is as long as there are members: see `view`.
            periodic_announce: None,
            periodic_announce_to_down_members: Some(each(ANNOUNCE_DOWN_INTERVAL, NonZeroUsize::MIN)),
            periodic_gossip: Some(each(GOSSIP_INTERVAL, GOSSIP_FANOUT)),
        };
        let foca_rng = Rng::new(seed, "membership/foca").into_inner();
        Self {
            foca: Foca::new(Id::new(me), config.clone(), foca_rng, CborCodec),
            config,
            runtime: AccumulatingRuntime::new(),
            rng: Rng::new(seed, "membership"),
            timers: Timers::default(),
            members: BTreeMap::new(),
            lives: Lives::default(),
            introduced_as: born_as,
            accepted: true,
            announce_at: None,
            born_as,
            corrected: BTreeMap::new(),
            postponed: false,
            gossip_timer: None,
            pinged: None,
            view: View::default(),
            addrs_due: None,
            joins: BTreeMap::new(),
            left: false,
            members_max: MEMBERS_MAX,
            events: VecDeque::new(),
        }
    }

    /// This node, as it introduces itself.
    pub(crate) fn me(&self) -> &Member {
        self.foca.identity().member()
    }

    /// A live member other than this node.
    pub(crate) fn member(&self, peer: &PeerId) -> Option<&Member> {
        self.members.get(peer).map(Arc::as_ref)
    }

    /// Live members other than this node, by peer ID.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values().map(Arc::as_ref)
    }

    /// Live members that are suspected of having failed.
    pub(crate) fn suspected(&self) -> impl Iterator<Item = PeerId> {
        let known = self.foca.iter_membership_state();
        known.filter(|known| known.state() == State::Suspect).map(|known| known.id().member().peer)
    }

    /// How many live members there are besides this node.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Keeps to itself until [`Membership::set_addrs`], or for [`ADDRS_WAIT`].
    pub(crate) fn wait_for_addrs(&mut self, now: Instant) {
        self.addrs_due = Some(now + ADDRS_WAIT);
    }

    fn stop_waiting(&mut self, now: Instant) {
        self.addrs_due = None;
        for (peer, addr) in std::mem::take(&mut self.joins) {
            self.join(now, peer, addr);
        }
    }

    /// This node can be reached at these addresses: tells everybody, if they are others.
    pub(crate) fn set_addrs(&mut self, now: Instant, addrs: Vec<IpAddr>) {
        let addrs = usable_addrs(addrs);
        if self.left || *addrs == *self.me().addrs {
            return;
        }
        let generation = self.me().generation.saturating_add(1);
        self.become_known_as(Member { generation, addrs: addrs.into(), ..self.me().clone() });
        self.flush(now, None);
        self.stop_waiting(now);
    }

    /// A dial reached `peer` at `addr`: asks it to let this node in. It is a member when it
    /// answers.
    pub(crate) fn join(&mut self, now: Instant, peer: PeerId, addr: SocketAddr) {
        if self.left || peer == self.me().peer {
            return;
        }
        if self.addrs_due.is_some() {
            self.joins.insert(peer, addr);
            return;
        }
        // Its answer to an announcement would be as long as there are members.
        if self.members.contains_key(&peer) {
            return self.ask(peer, None);
        }
        // Generation 0: whatever life of it is there.
        let target = Member {
            peer,
            generation: 0,
            addrs: [addr.ip()].into(),
            router_port: addr.port(),
            registry_port: 0,
            zone: None,
        };
        self.announce(Id::new(target));
        self.flush(now, None);
    }

    /// A packet arrived; gives the packet to reply with.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when it is none, or `from` may not send it.
    pub(crate) fn on_message(
        &mut self,
        now: Instant,
        from: PeerId,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, Malformed> {
        let outcome = self.handle_packet(now, from, bytes);
        let reply = self.flush(now, Some(from));
        outcome.map(|()| reply)
    }

    /// The reply to [`Event::Send`] arrived.
    ///
    /// # Errors
    ///
    /// As [`Membership::on_message`].
    pub(crate) fn on_reply(&mut self, now: Instant, from: PeerId, bytes: &[u8]) -> Result<(), Malformed> {
        let outcome = self.handle_packet(now, from, bytes);
        self.flush(now, None);
        outcome
    }

    /// Tells some members that this node leaves; they tell the others. Nothing happens after.
    pub(crate) fn leave(&mut self, now: Instant) {
        if self.left {
            return;
        }
        // Can only fail to encode, which leaves peers to find out.
        let _ = self.foca.leave_cluster(&mut self.runtime);
        self.flush(now, None);
        self.left = true;
        self.timers.clear();
        self.announce_at = None;
        self.gossip_timer = None;
        self.addrs_due = None;
        self.view = View::default();
    }

    /// `peer` says that its life of this generation ends, or whichever is known. Returns whether
    /// that is news of a member: a farewell that arrives after a restart is none.
    pub(crate) fn on_goodbye(&mut self, now: Instant, peer: PeerId, generation: Option<u64>) -> bool {
        let Some(member) = self.members.get(&peer) else { return false };
        if self.left || generation.is_some_and(|generation| generation < member.generation) {
            return false;
        }
        let down = foca::Member::new(Id::from(Arc::clone(member)), 0, State::Down);
        let _ = self.foca.apply_many(std::iter::once(down), true, &mut self.runtime);
        let _ = self.foca.gossip(&mut self.runtime);
        self.flush(now, None);
        true
    }

    /// Fires everything due at `now`. Early, late and repeated calls are harmless.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if let Some(at) = self.timers.next_at()
            && let late = now.saturating_duration_since(at)
            && late > STALL_MIN
            && !self.postponed
        {
            // The process was frozen. Time in which nothing could be received proves nothing;
            // leave some for what waits in socket buffers.
            self.timers.postpone(late + PROBE_RTT);
            self.postponed = true;
            return;
        }
        while let Some(timer) = self.timers.pop(now) {
            self.postponed = false;
            // Errors are states of foca that its next timer repairs (`IncompleteProbeCycle`).
            let _ = self.foca.handle_timer(timer, &mut self.runtime);
            self.flush(now, None);
        }
        if self.addrs_due.is_some_and(|at| at <= now) {
            self.stop_waiting(now);
        }
        self.compare_if_due(now);
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce_at = None;
            let chosen = self.rng.below(self.members.len());
            if let Some(member) = self.members.values().nth(chosen).cloned() {
                self.announce(member.into());
                if !self.accepted {
                    self.announce_at = Some(now + INTRODUCE_INTERVAL);
                }
            }
            self.flush(now, None);
        }
    }

    /// When to call [`Membership::handle_timeout`] next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let own = soonest(self.announce_at, self.addrs_due);
        soonest(soonest(self.timers.next_at(), own), self.view.poll_timeout())
    }

    /// The next event; drain to `None` after every call.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn handle_packet(&mut self, now: Instant, from: PeerId, bytes: &[u8]) -> Result<(), Malformed> {
        if bytes.len() > PACKET_SIZE_MAX {
            return Err(Malformed);
        }
        let mut packet = match Packet::decode(bytes) {
            Ok(packet) => packet,
            // Of a later release. As good as lost, which SWIM bears.
            Err(CodecError::UnknownMessage(_)) => return Ok(()),
            Err(_) => return Err(Malformed),
        };
        if packet.header.message == Message::Announce {
            packet.updates.clear();
        }
        let me = self.me().peer;
        let (src, dst) = (Arc::clone(packet.header.src.member()), Arc::clone(packet.header.dst.member()));
        // A peer cannot speak for another, nor this node to itself.
        if src.peer != from || dst.peer != me || from == me {
            return Err(Malformed);
        }
        let lead_max = self.born_as.saturating_add(GENERATION_LEAD_MAX);
        if src.generation > lead_max {
            return Err(Malformed);
        }
        // What nobody can be answered yet is as good as lost.
        if self.left || self.addrs_due.is_some() {
            return Ok(());
        }

        let hearsay_max = self.born_as.saturating_add(HEARSAY_LEAD_MAX);
        let mut changed = packet.had_more;
        packet.updates.retain(|update| {
            let keeps = update.id().member().generation <= hearsay_max && self.may_be_news(update);
            changed |= !keeps;
            keeps
        });

        // A later life of this node is known to others: its clock was set back before this one.
        let records = packet.updates.iter().map(|update| update.id().member());
        let ahead = records.filter(|known| known.peer == me).chain([&dst]);
        if let Some(generation) = ahead.map(|known| known.generation).max()
            && generation > self.me().generation
            && generation < lead_max
        {
            let generation = generation.saturating_add(OUTDO_STEP).min(lead_max);
            self.become_known_as(Member { generation, ..self.me().clone() });
        }
        // foca ignores what is addressed to another life of this node, and the sender would
        // suspect it for that. The announcement tells it who is here.
        if dst.generation != self.me().generation && packet.header.message != Message::Announce {
            self.correct(now, &src);
            return Ok(());
        }
        // The other way round: the sender must learn that it has to outdo an earlier life.
        // What lives is looked up; only what does not is searched for.
        let is_known = self.lives.contains(&src);
        let mut known = self.foca.iter_membership_state().map(|known| known.id().member());
        let is_later = |known: &&Arc<Member>| known.peer == from && known.generation > src.generation;
        let later = if is_known { None } else { known.find(is_later).cloned() };
        drop(known);
        if let Some(later) = later {
            self.correct(now, &later);
            return Ok(());
        }

        if self.foca.iter_membership_state().len() + packet.updates.len() >= self.members_max {
            let known: BTreeSet<PeerId> =
                self.foca.iter_membership_state().map(|known| known.id().member().peer).collect();
            if !known.contains(&from) {
                return Ok(());
            }
            packet.updates.retain(|update| known.contains(&update.id().member().peer));
            changed = true;
        }
        let encoded = if changed { Some(packet.encode().map_err(|_| Malformed)?) } else { None };
        self.foca
            .handle_data(encoded.as_deref().unwrap_or(bytes), &mut self.runtime)
            .map_err(|_| Malformed)?;
        self.tell_changes(now);
        if let Message::Ack(number) = packet.header.message
            && self.pinged == Some((from, number))
        {
            self.timers.idle_indirect_probe();
        }
        Ok(())
    }

    /// Whether foca, which looks through all members for each record, has to see this one. Most
    /// are told many times over, and that a member is alive which has never had to say so is
    /// news once.
    fn may_be_news(&self, update: &foca::Member<Id>) -> bool {
        let is_plain = update.state() == State::Alive && update.incarnation() == 0;
        !(is_plain && self.lives.contains(update.id().member()))
    }

    fn become_known_as(&mut self, me: Member) {
        // Fails only for the same identity, at the last generation: nothing to change then.
        let _ = self.foca.change_identity(Id::new(me), &mut self.runtime);
    }

    /// Tells a peer which life of this node is here, and by which life of its own it is known.
    fn correct(&mut self, now: Instant, peer: &Arc<Member>) {
        self.corrected.retain(|_, at| now.saturating_duration_since(*at) < CORRECT_INTERVAL);
        if self.corrected.len() < CORRECTED_MAX && !self.corrected.contains_key(&peer.peer) {
            self.corrected.insert(peer.peer, now);
            self.announce(Id::from(Arc::clone(peer)));
        }
    }

    fn announce(&mut self, to: Id) {
        // Can only fail to encode; the next announcement makes up for it.
        let _ = self.foca.announce(to, &mut self.runtime);
    }

    /// Brings the mirror of live members up to date with what foca told.
    fn tell_changes(&mut self, now: Instant) {
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(id) => {
                    let member = id.member();
                    let event =
                        if self.keep(member) { Event::Changed } else { Event::Up }(Member::clone(member));
                    self.events.push_back(event);
                }
                OwnedNotification::Rename(_, id) => {
                    // A member that was down comes up by `MemberUp`.
                    let member = id.member();
                    if self.members.contains_key(&member.peer) {
                        self.keep(member);
                        self.events.push_back(Event::Changed(Member::clone(member)));
                    }
                }
                OwnedNotification::MemberDown(id) => {
                    if let Some(known) = self.members.remove(&id.member().peer) {
                        self.lives.take(&known);
                        self.events.push_back(Event::Down(known.peer));
                    }
                }
                OwnedNotification::Active => self.accepted = true,
                // The first follows `MemberDown` of the last member, where the bootstrapper takes
                // over. The second is this node's leave. The third is seen by the generation.
                OwnedNotification::Idle | OwnedNotification::Defunct | OwnedNotification::Rejoin(_) => {}
            }
        }
        if !self.left {
            self.view.on_members(now, self.members.len());
        }
    }

    /// Keeps what is known of a live member; whether it was one already.
    fn keep(&mut self, member: &Arc<Member>) -> bool {
        let former = self.members.insert(member.peer, Arc::clone(member));
        if let Some(former) = &former {
            self.lives.take(former);
        }
        self.lives.put(member);
        former.is_some()
    }

    /// Turns what foca wants into events and timers; keeps the first packet for `reply_to`.
    fn flush(&mut self, now: Instant, reply_to: Option<PeerId>) -> Option<Vec<u8>> {
        self.tell_changes(now);
        if self.introduced_as != self.me().generation {
            self.introduced_as = self.me().generation;
            self.accepted = false;
            self.announce_at = Some(now);
        }
        let mut pings = false;
        while let Some((delay, timer)) = self.runtime.to_schedule() {
            pings |= matches!(timer, foca::Timer::SendIndirectProbe { .. });
            if matches!(timer, foca::Timer::PeriodicGossip(_)) {
                self.gossip_timer = Some((now + delay, timer));
            } else {
                self.timers.add(now + delay, timer);
            }
        }
        // A node without news does not wake up four times a second to say nothing, and one that
        // has said nothing for longer passes news on at once.
        if self.foca.updates_backlog() > 0
            && let Some((due_at, timer)) = self.gossip_timer.take()
        {
            self.timers.add(due_at.max(now), timer);
        }
        let mut reply = None;
        while let Some((to, packet)) = self.runtime.to_send() {
            let to = to.member();
            // foca knows earlier lives of this node as members that are down.
            if to.peer == self.me().peer {
                continue;
            }
            if pings && let Some(number) = codec::ping_number(&packet) {
                self.pinged = Some((to.peer, number));
            }
            if reply_to == Some(to.peer) && reply.is_none() {
                reply = Some(packet.to_vec());
            } else if self.events.len() < EVENTS_MAX {
                let known = self.members.get(&to.peer).filter(|known| known.generation >= to.generation);
                let addrs = match known {
                    Some(known) if to.generation > 0 => known.router_addrs(),
                    // The address of a dial that has just succeeded, or a member that is down.
                    Some(_) | None => to.router_addrs(),
                };
                self.events.push_back(Event::Send { to: to.peer, addrs, packet: packet.to_vec() });
            }
        }
        let suspect_time = suspect_time(self.members.len());
        if self.config.suspect_to_down_after != suspect_time {
            self.config.suspect_to_down_after = suspect_time;
            // Refuses to change other settings only.
            let _ = self.foca.set_config(self.config.clone());
        }
        reply
    }
}

const fn each(frequency: Duration, num_members: NonZeroUsize) -> PeriodicParams {
    PeriodicParams { frequency, num_members }
}

/// How long suspicion takes to reach a suspect among `members`, and its objection to come back:
/// gossip needs time in proportion to the logarithm.
fn suspect_time(members: usize) -> Duration {
    SUSPECT_TIME * members.max(10).ilog10()
}
