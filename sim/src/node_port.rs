//! What leads containerd to the mirror on its node: kube-proxy's rules, which lag behind the pods.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::sleep;

use crate::node::{elapsed, lock};

/// How long the rules lead to a mirror that was told to end. kube-proxy is told of it at once, and changes its rules
/// once a second.
const LAG: Duration = Duration::from_secs(2);

/// How long containerd tries to connect where nobody answers.
const DIAL_MAX: Duration = Duration::from_secs(30);

/// A node port. By default one without any lag.
#[derive(Clone, Debug, Default)]
pub struct NodePort {
    lags: bool,
    /// When the mirror was told to end.
    told_at: Arc<Mutex<Option<Duration>>>,
}

impl NodePort {
    pub(crate) fn new(lags: bool) -> Self {
        Self { lags, told_at: Arc::default() }
    }

    /// The mirror starts.
    pub(crate) fn started(&self) {
        *lock(&self.told_at) = None;
    }

    /// The mirror is told to end.
    pub(crate) fn told_to_end(&self, at: Duration) {
        lock(&self.told_at).get_or_insert(at);
    }

    /// What it takes to see that the mirror is gone: no time, or containerd's patience while the rules lead to an
    /// address that went away with the pod.
    pub(crate) async fn find_nobody(&self) {
        let told_at = *lock(&self.told_at);
        if self.lags && told_at.is_some_and(|at| elapsed() < at + LAG) {
            sleep(DIAL_MAX).await;
        }
    }
}
