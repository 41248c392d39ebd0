//! What a node wants done. Orders are verbs; the shell carries them out and decides nothing.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{AttemptId, ExchangeId, Member, PeerId, PullId, QuestionId, oci::Digest};

/// How long after the timeout of an order its answer is given up. Shorter and answers that merely
/// waited for the core are lost; longer and one that was lost delays what comes next.
pub(crate) const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// Longest life of a connection attempt, of this node's or another's. Shorter and a peer starved
/// of CPU cannot be reached; longer and messages wait on an address that swallows packets while
/// the member's other addresses would do.
pub const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// Longest timeout of a [`Output::Send`], and hence the longest life of an exchange of another
/// node's. Shorter and exchanges that their sender still waits for are cut; longer and peers that
/// begin exchanges and say nothing keep more of them open.
pub const EXCHANGE_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// Something the shell must do; the node itself never does it. Where an order has a timeout, its
/// answer comes by then, even if it is that there was none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    // --- containerd -----------------------------------------------------------------------
    /// Connect to containerd and open its event stream, replacing any that is open.
    ConnectContainerd {
        /// Report failure after this long; also when, later on, containerd takes longer than this
        /// to say more of an image that an event names.
        timeout: Duration,
    },
    /// Ask containerd for a sign of life over the open connection.
    ProbeContainerd {
        /// Report failure after this long.
        timeout: Duration,
    },
    /// List all images and content; one listing at a time.
    List {
        /// Report failure after this long.
        timeout: Duration,
    },
    /// Ask containerd what it knows of a digest.
    Inspect {
        /// The digest.
        digest: Digest,
        /// Report failure after this long.
        timeout: Duration,
    },
    /// Read a manifest from the content store, giving up beyond
    /// [`crate::oci::MANIFEST_SIZE_MAX`].
    ReadManifest {
        /// The digest.
        digest: Digest,
        /// Report failure after this long.
        timeout: Duration,
    },
    /// Try once to watch the content directory from here on; does nothing while that is so.
    WatchContent {
        /// Report what is there as well, as if it appeared, if that is not too much.
        scan: bool,
    },

    // --- what the registry serves from local content ---------------------------------------
    /// Serve this content to whoever asks for it.
    ServeContent {
        /// Its digest.
        digest: Digest,
        /// Its size in bytes; a file of another size is a miss.
        size: u64,
    },
    /// Stop serving this content.
    StopServingContent {
        /// Its digest.
        digest: Digest,
    },
    /// Answer requests for this tag with this digest.
    ServeTag {
        /// `registry/repository:tag`.
        name: String,
        /// What it names.
        digest: Digest,
    },
    /// Stop answering requests for this tag.
    StopServingTag {
        /// `registry/repository:tag`.
        name: String,
    },

    // --- the cluster ----------------------------------------------------------------------
    /// Ask the bootstrapper where members may be found.
    ResolveBootstrap {
        /// Report failure after this long.
        timeout: Duration,
    },
    /// Connect to a router address and say who is there.
    Dial {
        /// The address.
        addr: SocketAddr,
        /// Who should be there, where known.
        peer: Option<PeerId>,
        /// Report failure after this long.
        timeout: Duration,
    },
    /// Send a control message and report its reply.
    Send {
        /// Whom to.
        to: PeerId,
        /// Where to dial if not connected. Empty: only over an open connection.
        addrs: Vec<SocketAddr>,
        /// Names the exchange.
        exchange: ExchangeId,
        /// The message.
        message: Vec<u8>,
        /// Report failure after this long.
        timeout: Duration,
    },
    /// Answer a control message.
    Reply {
        /// The exchange of the message received.
        exchange: ExchangeId,
        /// The reply.
        message: Vec<u8>,
    },
    /// Close all connections to a peer that is no longer a member.
    Disconnect {
        /// The peer.
        peer: PeerId,
    },

    // --- pulls ----------------------------------------------------------------------------
    /// Ask a peer for what the client asked for.
    Fetch {
        /// The pull.
        pull: PullId,
        /// Names the attempt.
        attempt: AttemptId,
        /// The peer; its answer must name the same content.
        peer: PeerId,
        /// Its registry.
        addr: SocketAddr,
        /// Bytes of the body that the client has at least: ask for the rest only. Where another attempt is being
        /// forwarded it gets more meanwhile, which must not be given twice.
        skip: u64,
        /// A body no longer than this is read ahead and compared with the digest asked for
        /// before it counts as answered, so that no byte of a wrong one reaches the client.
        /// 0: none is.
        check_bytes_max: u64,
    },
    /// Drop an attempt; nothing more is reported of it.
    CancelFetch {
        /// The pull.
        pull: PullId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// Send this attempt's headers (unless sent) and body to the client.
    Forward {
        /// The pull.
        pull: PullId,
        /// The attempt, which has answered.
        attempt: AttemptId,
        /// Report progress at least this often.
        report_interval: Duration,
    },
    /// Answer 404, so that the client goes upstream.
    Refuse {
        /// The pull.
        pull: PullId,
        /// Why.
        reason: RefuseReason,
        /// Attempts made.
        attempts: u32,
    },
    /// End the body early by a clean close (FIN), so that the client asks again from its offset.
    Truncate {
        /// The pull.
        pull: PullId,
        /// Why.
        reason: RefuseReason,
        /// From whom the body came last, and why it does no more; for people.
        left: Option<(PeerId, &'static str)>,
    },

    // --- people ---------------------------------------------------------------------------
    /// The answer to [`crate::Input::HoldersAsked`].
    TellHolders {
        /// The question.
        question: QuestionId,
        /// Who has it, as far as was found out.
        found: FoundHolders,
    },

    // --- the process ----------------------------------------------------------------------
    /// The readiness to report from here on.
    SetReady {
        /// Whether `/readyz` says 200.
        ready: bool,
    },
    /// Every farewell has been said (or given up on); the process may end once transfers have.
    ShutdownComplete,
    /// Something an operator or developer may want to read; changes nothing.
    Notice(Notice),
}

/// Who has something, for a person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundHolders {
    /// Whether this node has it and has announced it.
    pub is_held_here: bool,
    /// Other members that have it: as many as owners name to one who pulls, not all where many do.
    pub others: Vec<PeerId>,
    /// Whether an owner could say. If not, there may be holders although none is named.
    pub is_certain: bool,
}

/// Why a pull was not (wholly) answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefuseReason {
    /// The directory says that no node has it.
    NobodyHasIt,
    /// No owner of the key could say who has it in time.
    LookupUnanswered,
    /// Every holder was tried, or is known to be failing.
    HoldersExhausted,
    /// The deadline passed.
    DeadlineExceeded,
    /// The node has as many pulls as it can bear.
    Overloaded,
    /// The process is ending.
    ShuttingDown,
}

impl RefuseReason {
    /// A short name for labels and traces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NobodyHasIt => "nobody_has_it",
            Self::LookupUnanswered => "lookup_unanswered",
            Self::HoldersExhausted => "holders_exhausted",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Overloaded => "overloaded",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

impl fmt::Display for RefuseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// containerd cannot be reached; said once per outage.
    ContainerdLost {
        /// What went wrong.
        cause: String,
    },
    /// The content directory cannot be watched; said once per outage.
    ContentUnwatched {
        /// What went wrong.
        cause: String,
    },
    /// containerd was listed after having been out of reach, or for the first time.
    ContainerdListed {
        /// Images found.
        images: usize,
        /// Content found.
        contents: usize,
    },
    /// An image has something that cannot be walked or is unusual; said once per image and
    /// reason. Its content is announced all the same.
    ImageUnusual {
        /// The image.
        image: String,
        /// The content in question.
        digest: Digest,
        /// What is unusual: one of a few fixed words, also a metric label.
        reason: &'static str,
        /// More, for a person.
        detail: String,
    },
    /// An address of the bootstrapper leads back to this node.
    BootstrapIsSelf {
        /// The address.
        addr: SocketAddr,
    },
    /// Images were pulled past this mirror; said at most once an hour.
    MirrorBypassed {
        /// How many in a row.
        images: u64,
        /// The last of them.
        example: String,
    },
    /// The bootstrapper gave nothing; said once per outage.
    BootstrapFailed {
        /// What went wrong.
        cause: String,
    },
    /// A member joined or came back.
    MemberUp {
        /// The member.
        member: Member,
    },
    /// A member left or failed.
    MemberDown {
        /// The member.
        peer: PeerId,
    },
    /// A peer's circuit breaker opened.
    PeerShunned {
        /// The peer.
        peer: PeerId,
        /// Why.
        reason: &'static str,
        /// For how long, at first.
        duration: Duration,
    },
    /// A peer's circuit breaker closed again.
    PeerTrusted {
        /// The peer.
        peer: PeerId,
    },
    /// A peer sent a control message that makes no sense; said at most once a minute per peer.
    MessageMalformed {
        /// The peer.
        peer: PeerId,
        /// What is wrong with it.
        cause: String,
    },
    /// A transfer was moved to another holder in mid-body.
    PullResumed {
        /// The pull.
        pull: PullId,
        /// The holder left.
        from: PeerId,
        /// Why.
        reason: &'static str,
        /// Where in the body the other one goes on.
        at_bytes: u64,
    },
}

/// What the next timeout is for; for traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wake {
    /// The inventory: resync, retry, paced reads.
    Inventory,
    /// The interception watch: ask where an image came from.
    Intercept,
    /// The bootstrapper: ask or dial again.
    Bootstrap,
    /// Membership: probe, gossip, suspicion.
    Membership,
    /// The directory: announce, reconcile, hedge or give up a lookup.
    Directory,
    /// A pull: hedge, stall, deadline.
    Fetch,
    /// Shutdown: stop waiting for farewells.
    Shutdown,
}

/// The sooner of two timeouts.
pub(crate) fn soonest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}
