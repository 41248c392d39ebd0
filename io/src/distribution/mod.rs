//! The language that clients, this registry and other nodes speak: requests for content, error
//! bodies, credentials, headers (OCI distribution-spec and what mirrors add to it). Pure; knows
//! neither who serves nor who is asked.

mod auth;
mod error;
mod request;

pub use self::auth::Credentials;
pub(crate) use self::{
    auth::hash,
    error::OciError,
    request::{ContentRequest, MIRRORED_HEADER, Wanted, is_base, is_mirrored, parse},
};

/// Names the content of a response (OCI distribution-spec, "Pulling manifests").
pub(crate) const DIGEST_HEADER: &str = "docker-content-digest";

/// Says how many bytes a node still has to send to other nodes. Not every release says so.
pub(crate) const BACKLOG_HEADER: &str = "x-spegel-backlog";
