//! Counts who was refused, and tells the operator without letting strangers fill the log.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::extract::ConnectInfo;
use http::request::Parts;
use tracing::warn;

use crate::{clock, distribution::OciError, metrics::Metrics};

/// How often a reason to refuse is mentioned. More often and a stranger who keeps asking fills the
/// log; less often and an operator who has put it right waits longer to see that.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Who was refused; clones share it.
#[derive(Clone, Default)]
pub struct Refusals(Arc<State>);

#[derive(Default)]
struct State {
    metrics: Metrics,
    /// When each reason was last mentioned. There are a few fixed ones.
    said: Mutex<BTreeMap<&'static str, Instant>>,
}

impl Refusals {
    /// Counted in `metrics`.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self(Arc::new(State { metrics, said: Mutex::default() }))
    }

    /// A request to the registry was refused.
    pub(super) fn count_request(&self, request: &Parts, error: &OciError) {
        let reason = if let OciError::Stranger(stranger) = error { stranger.as_str() } else { "credentials" };
        if self.count(reason) {
            let from = request.extensions.get::<ConnectInfo<SocketAddr>>().map(|from| from.0);
            let from = from.map(tracing::field::display);
            warn!(reason, from, cause = %error, "request refused; mentioned once a minute at most");
        }
    }

    /// An answer did not come from the node that was asked.
    pub(super) fn count_answer(&self) {
        let reason = "answer";
        if self.count(reason) {
            warn!(
                reason,
                "answer refused: it is not signed by the node that was asked; has its address passed to another pod?"
            );
        }
    }

    /// A connection to the router was refused.
    pub(crate) fn count_connection(&self, from: impl fmt::Display) {
        let reason = "router";
        if self.count(reason) {
            warn!(
                reason,
                %from,
                "connection refused: it was not made with the cluster secret; is it a node that lacks the secret, or \
                 has another one? Mentioned once a minute at most"
            );
        }
    }

    /// A node hung up as soon as it was dialled, perhaps because it refuses this one.
    pub(crate) fn mention_hang_up(&self, by: impl fmt::Display) {
        if self.is_due("hang_up") {
            warn!(
                %by,
                "a node hung up as soon as it was dialled: does it have the same cluster secret as this one? \
                 Mentioned once a minute at most"
            );
        }
    }

    /// Whether it should be mentioned as well.
    fn count(&self, reason: &'static str) -> bool {
        self.0.metrics.stranger_refused(reason);
        self.is_due(reason)
    }

    fn is_due(&self, reason: &'static str) -> bool {
        let now = clock::now();
        let mut said = self.0.said.lock().unwrap_or_else(PoisonError::into_inner);
        let due = said.get(reason).is_none_or(|at| now.saturating_duration_since(*at) >= WARNING_INTERVAL);
        if due {
            said.insert(reason, now);
        }
        due
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").finish_non_exhaustive()
    }
}
