//! What this node asks of those that ask it, and shows to those it asks: basic auth, and signatures
//! made with the secret of the cluster. Decides nothing: what is signed and what is believed says
//! [`spegel_core::ClusterSecrets`]; this brings it headers and the time, and counts who was refused.
//!
//! Two kinds of requests reach the registry of a cluster with a secret. Nodes, which say so by a
//! header, sign what they ask, and show nothing else: a stranger may have got the address of a node,
//! and must not be handed a password. Everybody else is a client, containerd as a rule, which cannot
//! sign: it gives a user name and password out of `hosts.toml`, either those that the operator chose
//! or some derived from the secret. Without a secret, nodes give those that were chosen as well.

mod file;
mod refusals;

use std::fmt;

use http::{HeaderMap, HeaderValue, Method, header, request::Parts, response};
use spegel_core::{CLIENT_USERNAME, ClusterSecrets, NodeRequest, PeerId, SignedRequest, VerifiedRequest};
use tokio::sync::watch;

pub use self::{
    file::{SecretFileError, read, watch},
    refusals::Refusals,
};
use crate::{
    clock,
    distribution::{Credentials, DIGEST_HEADER, OciError, is_mirrored},
    hosts_toml::BasicAuth,
};

/// Carries signatures, of requests and of answers.
pub(crate) const SIGNATURE_HEADER: &str = "x-spegel-signature";

/// Whom this node trusts; clones share the secrets. The default trusts everybody.
#[derive(Clone, Default)]
pub struct Trust {
    credentials: Option<Credentials>,
    cluster: Option<Cluster>,
    refusals: Refusals,
}

#[derive(Clone)]
struct Cluster {
    me: PeerId,
    secrets: watch::Receiver<ClusterSecrets>,
}

impl Trust {
    /// Trusts clients with `credentials`, and nodes that have one of the secrets, or without secrets
    /// those with `credentials`. Without either, everybody. `me` is this node.
    #[must_use]
    pub fn new(
        me: PeerId,
        credentials: Option<Credentials>,
        secrets: Option<watch::Receiver<ClusterSecrets>>,
        refusals: Refusals,
    ) -> Self {
        Self { credentials, cluster: secrets.map(|secrets| Cluster { me, secrets }), refusals }
    }

    /// Whether a request may be answered.
    pub(crate) fn admit(&self, request: &Parts) -> Result<Admitted, OciError> {
        self.judge(request).inspect_err(|error| self.refusals.count_request(request, error))
    }

    fn judge(&self, request: &Parts) -> Result<Admitted, OciError> {
        let headers = &request.headers;
        let known = match (&self.cluster, &self.credentials) {
            (Some(cluster), _) if is_mirrored(headers) => {
                return cluster.verify(request).map(Some).map(Admitted);
            }
            (_, Some(credentials)) => credentials.are_in(headers),
            (Some(cluster), None) => cluster.knows_client(headers),
            (None, None) => true,
        };
        if known { Ok(Admitted(None)) } else { Err(OciError::Unauthorized) }
    }

    /// What to show to a node that is asked.
    pub(crate) fn show(&self, peer: &PeerId, method: &Method, target: &str) -> Shown {
        match (&self.cluster, &self.credentials) {
            (Some(cluster), _) => {
                let request = NodeRequest { peer, method: method.as_str(), target };
                Shown::Signature(cluster.secrets.borrow().sign(request, clock::unix_ms()))
            }
            (None, Some(credentials)) => Shown::Credentials(credentials.header().clone()),
            (None, None) => Shown::Nothing,
        }
    }

    /// The `Authorization` header that containerd shows to this node.
    pub(crate) fn as_client(&self) -> Option<String> {
        match (&self.credentials, &self.cluster) {
            (Some(credentials), _) => credentials.header().to_str().ok().map(ToOwned::to_owned),
            (None, Some(cluster)) => {
                BasicAuth::of_cluster(&cluster.secrets.borrow()).map(|auth| auth.header())
            }
            (None, None) => None,
        }
    }

    /// Whether an answer with content comes from the node that was asked.
    pub(crate) fn believes(&self, shown: &Shown, answer: &response::Parts) -> bool {
        let Shown::Signature(signed) = shown else { return true };
        let text = |name| answer.headers.get(name).map(HeaderValue::as_bytes);
        let digest = text(DIGEST_HEADER).and_then(|digest| std::str::from_utf8(digest).ok());
        let genuine = digest
            .zip(text(SIGNATURE_HEADER))
            .is_some_and(|(digest, signature)| signed.is_answered(digest, signature));
        if !genuine {
            self.refusals.count_answer();
        }
        genuine
    }
}

impl Cluster {
    fn verify(&self, request: &Parts) -> Result<VerifiedRequest, OciError> {
        let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
        let asked = NodeRequest { peer: &self.me, method: request.method.as_str(), target };
        let signature = request.headers.get(SIGNATURE_HEADER).map(HeaderValue::as_bytes);
        let verified = self.secrets.borrow().verify(asked, signature, clock::unix_ms());
        verified.map_err(OciError::Stranger)
    }

    /// Takes the same time whichever password is wrong.
    fn knows_client(&self, headers: &HeaderMap) -> bool {
        let is = |password: String| {
            Credentials::new(CLIENT_USERNAME.as_bytes(), password.as_bytes()).are_in(headers)
        };
        self.secrets.borrow().client_passwords().map(is).fold(false, |any, this| any | this)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

/// What a node is shown along with a request.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    Nothing,
    Credentials(HeaderValue),
    Signature(SignedRequest),
}

impl Shown {
    /// Name and value of a header.
    pub(crate) fn header(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Nothing => None,
            Self::Credentials(value) => Some((header::AUTHORIZATION.as_str(), value.to_str().ok()?)),
            Self::Signature(signed) => Some((SIGNATURE_HEADER, &signed.signature)),
        }
    }
}

/// A request that may be answered, and how to sign the answer if it is a node's.
pub(crate) struct Admitted(Option<VerifiedRequest>);

impl Admitted {
    /// Signs the answer if it names content.
    pub(crate) fn sign(&self, headers: &mut HeaderMap) {
        let digest = headers.get(DIGEST_HEADER).and_then(|digest| digest.to_str().ok());
        let Some((request, digest)) = self.0.as_ref().zip(digest) else { return };
        let signature =
            HeaderValue::try_from(request.sign_answer(digest)).expect("a word and digits are visible ASCII");
        headers.insert(SIGNATURE_HEADER, signature);
    }
}
