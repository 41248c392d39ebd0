//! What this node asks of those that ask it, and shows to those it asks: basic auth, and signatures
//! made with the secret of the cluster. Decides nothing: what is signed and what is believed says
//! [`spegel_core::ClusterSecrets`]; this brings it headers and the time, and counts who was refused.
//!
//! Two kinds of requests reach the registry. Nodes, which say so by a header, sign what they ask.
//! Everybody else is a client, containerd as a rule, which cannot sign: it gives a user name and
//! password out of `hosts.toml`, either those that the operator chose or some derived from the secret.

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
    /// Trusts clients with `credentials`, which nodes give to each other too, and nodes that have
    /// the secrets. Without either, everybody. `me` is this node.
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
        if self.credentials.as_ref().is_some_and(|credentials| !credentials.are_in(headers)) {
            return Err(OciError::Unauthorized);
        }
        let Some(cluster) = &self.cluster else { return Ok(Admitted(None)) };
        if is_mirrored(headers) {
            return cluster.verify(request).map(Some).map(Admitted);
        }
        if self.credentials.is_none() && !cluster.knows_client(headers) {
            return Err(OciError::Unauthorized);
        }
        Ok(Admitted(None))
    }

    /// What to show to a node that is asked.
    pub(crate) fn show(&self, peer: &PeerId, method: &Method, target: &str) -> Shown {
        let sign = |cluster: &Cluster| {
            let request = NodeRequest { peer, method: method.as_str(), target };
            cluster.secrets.borrow().sign(request, clock::unix_ms())
        };
        Shown {
            authorization: self.credentials.as_ref().map(|credentials| credentials.header().clone()),
            signed: self.cluster.as_ref().map(sign),
        }
    }

    /// Whether an answer with content comes from the node that was asked.
    pub(crate) fn believes(&self, shown: &Shown, answer: &response::Parts) -> bool {
        let Some(signed) = &shown.signed else { return true };
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
pub(crate) struct Shown {
    authorization: Option<HeaderValue>,
    signed: Option<SignedRequest>,
}

impl Shown {
    /// Names and values of headers.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let authorization = self.authorization.as_ref().and_then(|value| value.to_str().ok());
        let signature = self.signed.as_ref().map(|signed| signed.signature.as_str());
        let authorization = authorization.map(|value| (header::AUTHORIZATION.as_str(), value));
        authorization.into_iter().chain(signature.map(|value| (SIGNATURE_HEADER, value)))
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
