//! What can happen to a node. Events are in the past tense; bytes of blobs never enter.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    AttemptId, ExchangeId, Key, PeerId, PullId, QuestionId,
    oci::{Descriptor, Digest},
};

/// Something that happened outside the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    // --- containerd -----------------------------------------------------------------------
    /// The event stream of containerd is open: nothing that happens from here on is missed.
    ContainerdConnected {
        /// The version that containerd reports.
        version: String,
    },
    /// containerd's socket is missing, refuses, or its event stream ended.
    ContainerdDisconnected {
        /// What went wrong, for the operator.
        cause: String,
    },
    /// containerd gave a sign of life when asked by [`crate::Output::ProbeContainerd`].
    ContainerdProbed,
    /// [`crate::Output::ProbeContainerd`] got no answer.
    ContainerdProbeFailed {
        /// What went wrong, for the operator.
        cause: String,
    },
    /// The answer to [`crate::Output::List`].
    Listed(Listing),
    /// [`crate::Output::List`] came to nothing.
    ListFailed {
        /// What went wrong, for the operator.
        cause: String,
    },
    /// containerd created or updated an image.
    ImageChanged(ListedImage),
    /// containerd deleted an image.
    ImageDeleted {
        /// Its name as containerd has it.
        name: String,
    },
    /// A blob appeared in the content store: by inotify, or by containerd's `/content/create`.
    BlobCommitted {
        /// Its digest.
        digest: Digest,
    },
    /// A blob left the content store.
    BlobRemoved {
        /// Its digest.
        digest: Digest,
    },
    /// [`crate::Output::WatchContent`] succeeded: changes of the content directory are not missed
    /// from here on.
    ContentWatched,
    /// [`crate::Output::WatchContent`] failed, or the watch has ended (directory replaced): changes
    /// of the content directory are missed from here on.
    WatchLost {
        /// What went wrong, for the operator.
        cause: String,
    },
    /// Changes of the content directory may have been missed, others will not be (queue overflow).
    ChangesMissed {
        /// What went wrong, for the operator.
        cause: String,
    },
    /// The answer to [`crate::Output::Inspect`].
    Inspected {
        /// The digest asked for.
        digest: Digest,
        /// What containerd says of it.
        outcome: Inspection,
    },
    /// The answer to [`crate::Output::ReadManifest`].
    ManifestRead {
        /// The digest asked for.
        digest: Digest,
        /// What was read.
        outcome: ManifestRead,
    },
    /// Content that the node said it serves turned out to be gone, short or unreadable.
    ContentUnreadable {
        /// Its digest.
        digest: Digest,
    },

    // --- the cluster ----------------------------------------------------------------------
    /// The addresses other nodes can reach this node at; loopback and link-local ones left out.
    ListenAddrsChanged {
        /// All of them.
        addrs: Vec<IpAddr>,
    },
    /// The answer to [`crate::Output::ResolveBootstrap`].
    BootstrapResolved {
        /// Where members may be found. May name this node itself.
        addrs: Vec<BootstrapAddr>,
    },
    /// [`crate::Output::ResolveBootstrap`] came to nothing.
    BootstrapFailed {
        /// What went wrong, for the operator.
        cause: String,
    },
    /// [`crate::Output::Dial`] reached a node, possibly this one.
    Dialed {
        /// The address dialled.
        addr: SocketAddr,
        /// Who answered.
        peer: PeerId,
    },
    /// [`crate::Output::Dial`] reached nobody.
    DialFailed {
        /// The address dialled.
        addr: SocketAddr,
        /// What went wrong, for the operator.
        cause: String,
    },
    /// A peer sent a control message; exactly one [`crate::Output::Reply`] follows at once.
    MessageReceived {
        /// Who sent it, as the secure channel says.
        from: PeerId,
        /// Names the exchange for the reply.
        exchange: ExchangeId,
        /// The message as it travelled.
        message: Vec<u8>,
    },
    /// The reply to [`crate::Output::Send`].
    ReplyReceived {
        /// The exchange of the message sent.
        exchange: ExchangeId,
        /// The reply as it travelled.
        message: Vec<u8>,
    },
    /// [`crate::Output::Send`] got no reply: not reached, connection lost, or too late.
    SendFailed {
        /// The exchange of the message sent.
        exchange: ExchangeId,
        /// What went wrong, for the operator.
        cause: String,
    },

    // --- pulls ----------------------------------------------------------------------------
    /// A client asked for content that is not served locally.
    PullRequested {
        /// Names the pull from here on; never used twice.
        pull: PullId,
        /// What to look up.
        key: Key,
        /// The digest, unless asked for by tag.
        digest: Option<Digest>,
        /// Manifest or blob.
        kind: PullKind,
        /// Whether the whole body is wanted: GET, no range.
        whole: bool,
    },
    /// A peer answered an attempt with 200 or 206 and headers that make sense.
    FetchAnswered {
        /// The pull.
        pull: PullId,
        /// The attempt.
        attempt: AttemptId,
        /// Length of the body that follows, in bytes; 0 for HEAD.
        body_bytes: u64,
        /// Bytes that the peer had to send to other nodes when it answered; `None` if it did not say.
        backlog_bytes: Option<u64>,
    },
    /// An attempt ended without all of its body.
    FetchFailed {
        /// The pull.
        pull: PullId,
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        cause: FetchError,
    },
    /// Body bytes of the forwarded attempt went to the client, or time passed without any.
    /// Reported at least as often as [`crate::Output::Forward`] asks.
    FetchProgressed {
        /// The pull.
        pull: PullId,
        /// The attempt.
        attempt: AttemptId,
        /// Bytes of this attempt that the client was given, or had already, since the last report.
        bytes: u64,
        /// Time since the last report spent waiting for the peer, not for the client.
        starved: Duration,
    },
    /// The forwarded attempt's whole body was given to the client (or HEAD was answered).
    FetchCompleted {
        /// The pull.
        pull: PullId,
        /// The attempt.
        attempt: AttemptId,
        /// Bytes of this attempt that the client was given, or had already, since the last report.
        bytes: u64,
    },
    /// The client went away before its answer was complete. Not an error: containerd 2.1
    /// closes ranged requests early.
    PullAbandoned {
        /// The pull.
        pull: PullId,
    },

    // --- people ---------------------------------------------------------------------------
    /// Somebody wants to know who has something; exactly one [`crate::Output::TellHolders`] follows, within
    /// the time that a lookup may take.
    HoldersAsked {
        /// Names the question.
        question: QuestionId,
        /// What of.
        key: Key,
    },

    // --- the process ----------------------------------------------------------------------
    /// The process was told to end: [`crate::Output::ShutdownComplete`] follows, after the delay that was configured
    /// and within a second more. Said again, it changes nothing.
    ShutdownRequested,
}

/// Everything containerd has in the mirrored namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// All images.
    pub images: Vec<ListedImage>,
    /// All content.
    pub contents: Vec<ListedContent>,
}

/// An image as containerd lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedImage {
    /// The name as containerd has it: usually `registry/repository:tag` or `…@digest`, but
    /// anything is possible (CRI adds bare `sha256:…` aliases).
    pub name: String,
    /// Its root; `None` when containerd reports a digest that is not one.
    pub target: Option<Descriptor>,
}

/// Content as containerd lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContent {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where it was pulled from: pairs of registry and repository out of the
    /// `containerd.io/distribution.source.<registry>` labels (values list repositories
    /// separated by commas). Empty for imported content, and for a moment after a commit.
    pub sources: Vec<(String, String)>,
}

/// What containerd says of one digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// It has it in the mirrored namespace.
    Present(ListedContent),
    /// It does not, at least not in that namespace.
    Absent,
    /// It could not be asked.
    Failed {
        /// What went wrong, for the operator.
        cause: String,
    },
}

/// What reading a manifest from the content store gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestRead {
    /// Its bytes, at most [`crate::oci::MANIFEST_SIZE_MAX`].
    Bytes(Vec<u8>),
    /// It is larger than that.
    TooLarge,
    /// It is not there.
    Absent,
    /// It could not be read.
    Failed {
        /// What went wrong, for the operator.
        cause: String,
    },
}

/// Where a member may be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootstrapAddr {
    /// Router address.
    pub addr: SocketAddr,
    /// Who should answer there, where that is known (`/p2p/ID`).
    pub peer: Option<PeerId>,
}

/// What is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullKind {
    /// A manifest or index, by GET; small.
    Manifest,
    /// A blob, by GET; possibly of many gigabytes.
    Blob,
    /// The headers of either.
    Head,
}

/// Why an attempt gave no (more) bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FetchError {
    /// No connection: refused, unreachable, no answer.
    Connect,
    /// The peer says it does not have the content (404).
    NotFound,
    /// The peer refused for another reason (401, 429, 5xx …).
    Refused {
        /// The HTTP status.
        status: u16,
    },
    /// The answer makes no sense: missing or contradicting headers, another digest or range.
    Malformed,
    /// The body was read ahead and is not what its digest says.
    WrongContent,
    /// The connection ended or broke before the body did.
    Interrupted,
}
