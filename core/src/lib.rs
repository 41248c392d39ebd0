//! Every decision a mirror node takes, and nothing else.
//!
//! This crate is pure: no socket, clock, thread, global randomness or unordered
//! iteration. The shell (`spegel-io` in production, `spegel-sim` in the simulator)
//! feeds [`Input`]s with the time they happened into a [`Node`], drains
//! [`Node::poll_output`] after each, and calls [`Node::handle_timeout`] when
//! [`Node::poll_timeout`] says so. Equal seeds, configurations and inputs give equal
//! outputs, which is what lets the simulator replay an incident from its seed.

#![warn(missing_docs)]

mod backoff;
mod bootstrap;
mod config;
mod directory;
mod fetch;
mod filter;
mod health;
mod input;
mod intercept;
mod inventory;
mod key;
mod membership;
mod message;
mod node;
mod output;
mod pacer;
mod peer;
mod range;
mod report;
mod rng;
#[cfg(test)]
mod test_time;
mod trust;

pub mod check;
pub mod measure;
pub mod oci;

pub use crate::{
    config::Config,
    directory::{DirectoryContents, DirectoryReport, KnownHolders},
    filter::{FilterError, Filters},
    health::{BreakerState, PeerReport},
    input::{
        BootstrapAddr, FetchError, Input, Inspection, ListedContent, ListedImage, Listing, ManifestRead,
        PullKind,
    },
    inventory::{InventoryReport, QuarantinedImage, RegistryCounts},
    key::Key,
    message::{Announce, Compared, Fingerprint, MESSAGE_SIZE_MAX, MessageError, Reply, Request},
    node::Node,
    output::{CONNECT_TIMEOUT_MAX, EXCHANGE_TIMEOUT_MAX, FoundHolders, Notice, Output, RefuseReason, Wake},
    peer::{Member, PeerId, PeerIdError, Zone},
    range::{ByteRange, ContentRange, RangeError, Unsatisfiable},
    report::Report,
    trust::{
        CLIENT_USERNAME, ClusterSecrets, NodeRequest, SECRET_FILE_BYTES_MAX, SECRET_REREAD_INTERVAL,
        SIGNATURE_LIFETIME, SecretError, SignedRequest, Stranger, VerifiedRequest,
    },
};

use std::fmt;

/// One request of containerd (or another client) that this node could not answer locally.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PullId(pub u64);

/// One attempt of a pull to get its content from one address of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u32);

/// One question of a person who wants to know who has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuestionId(pub u64);

/// One control message and its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub u64);

impl fmt::Display for PullId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for QuestionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ExchangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shown_as_their_numbers() {
        assert_eq!(format!("{} {} {} {}", PullId(7), AttemptId(8), ExchangeId(9), QuestionId(6)), "7 8 9 6");
    }
}
