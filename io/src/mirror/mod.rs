//! Pulls: requests that this node cannot answer from local content. Each runs as a task that
//! tells the core what happens and carries out what the core orders; bytes go from a peer to
//! the client without touching the core, or this process where the kernel can move them. Decides
//! nothing: not whom to ask, how long to wait, when to move to another peer, or what to answer.
//! Called by the registry for each such request and by the shell with each order.

mod answer;
mod history;
mod relay;
mod task;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use spegel_core::{AttemptId, Input, Notice, Output, PeerId, PullId, RefuseReason};
use tokio::sync::{mpsc, oneshot};

use crate::{
    distribution::ContentRequest,
    metrics::Metrics,
    net::{Dialer, Stream},
    trust::Trust,
};
pub use history::PullHistory;
pub(crate) use history::{Failure, PullEnd, PullRecord};
pub(crate) use relay::RelayBody;

/// Most pulls at once. Fewer and a node that starts many pods sends some of them upstream for
/// no reason; each holds two connections, and a pipe or some buffers.
const PULLS_MAX: usize = 1024;

/// Most orders that wait for one pull. It gets a few at a time, so more means that it
/// no longer listens.
const ORDERS_MAX: usize = 64;

/// An order of the core for one pull.
#[derive(Clone, Copy, Debug)]
enum Order {
    Fetch {
        attempt: AttemptId,
        peer: PeerId,
        addr: SocketAddr,
        skip: u64,
        check_bytes_max: u64,
    },
    CancelFetch {
        attempt: AttemptId,
    },
    Forward {
        attempt: AttemptId,
        report_interval: Duration,
    },
    Refuse {
        reason: RefuseReason,
        attempts: u32,
    },
    Truncate {
        reason: RefuseReason,
        left: Option<(PeerId, &'static str)>,
    },
    /// Not to be carried out, but told: the pull has left a peer.
    NoteLeft {
        from: PeerId,
        reason: &'static str,
    },
}

/// How a pull is answered.
pub(crate) enum Outcome<S: Stream> {
    /// With what a peer has.
    Forwarded { status: StatusCode, headers: HeaderMap, length: u64, body: RelayBody<S> },
    /// Not at all.
    Refused { reason: RefuseReason, attempts: u32 },
}

type Table = Arc<Mutex<BTreeMap<PullId, mpsc::Sender<Order>>>>;

/// All pulls that are running; clones share them.
#[derive(Clone)]
pub struct Pulls<D> {
    dialer: D,
    inputs: mpsc::Sender<Input>,
    trust: Trust,
    metrics: Metrics,
    history: PullHistory,
    table: Table,
    next: Arc<AtomicU64>,
}

impl<D> fmt::Debug for Pulls<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulls").field("running", &lock(&self.table).len()).finish_non_exhaustive()
    }
}

impl<D: Dialer> Pulls<D> {
    /// No pulls. Peers are asked over `dialer`, and shown what `trust` says; what happens goes to
    /// `inputs`.
    #[must_use]
    pub fn new(dialer: D, inputs: mpsc::Sender<Input>, trust: Trust, metrics: Metrics) -> Self {
        let (table, next) = (Table::default(), Arc::new(AtomicU64::new(1)));
        Self { dialer, inputs, trust, metrics, history: PullHistory::default(), table, next }
    }

    /// Carries out an order of the core; `false` if it is none for a pull. Orders for a pull
    /// that is over are ignored. Never waits.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the shell routes every order; these are ours")]
    pub fn perform(&self, output: &Output) -> bool {
        let (pull, order) = match *output {
            Output::Notice(Notice::PullResumed { pull, from, reason, .. }) => {
                self.pass_on(pull, Order::NoteLeft { from, reason });
                // It is for the log, too.
                return false;
            }
            Output::Fetch { pull, attempt, peer, addr, skip, check_bytes_max } => {
                (pull, Order::Fetch { attempt, peer, addr, skip, check_bytes_max })
            }
            Output::CancelFetch { pull, attempt } => (pull, Order::CancelFetch { attempt }),
            Output::Forward { pull, attempt, report_interval } => {
                (pull, Order::Forward { attempt, report_interval })
            }
            Output::Refuse { pull, reason, attempts } => (pull, Order::Refuse { reason, attempts }),
            Output::Truncate { pull, reason, left } => (pull, Order::Truncate { reason, left }),
            _ => return false,
        };
        self.pass_on(pull, order);
        true
    }

    fn pass_on(&self, pull: PullId, order: Order) {
        let mut table = lock(&self.table);
        if table.get(&pull).is_some_and(|orders| orders.try_send(order).is_err()) {
            // Orders must not be lost one by one: without its entry the pull ends as a whole.
            tracing::warn!(%pull, "pull dropped because it no longer follows orders");
            table.remove(&pull);
        }
    }

    /// What became of the last pulls.
    #[must_use]
    pub fn history(&self) -> PullHistory {
        self.history.clone()
    }

    /// Pulls from peers what a client asked for; waits for the head of the response. Dropping
    /// the future, or the body of the outcome, abandons the pull.
    pub(crate) async fn pull(&self, request: ContentRequest) -> Outcome<D::Stream> {
        let overloaded = Outcome::Refused { reason: RefuseReason::Overloaded, attempts: 0 };
        let pull = PullId(self.next.fetch_add(1, Ordering::Relaxed));
        let (to_task, orders) = mpsc::channel(ORDERS_MAX);
        {
            let mut table = lock(&self.table);
            if table.len() >= PULLS_MAX {
                self.metrics.pull_miss(&request.registry, RefuseReason::Overloaded);
                return overloaded;
            }
            table.insert(pull, to_task);
        }
        let entry = Entry { table: Arc::clone(&self.table), pull };
        let (answer, outcome) = oneshot::channel();
        let task = task::Task::new(self, pull, request, orders, answer);
        tokio::spawn(async move {
            task.run().await;
            drop(entry);
        });
        outcome.await.unwrap_or(overloaded)
    }

    /// How many pulls are running.
    #[must_use]
    pub fn running(&self) -> usize {
        lock(&self.table).len()
    }
}

/// Removes a pull from the table when its task ends, however it does.
struct Entry {
    table: Table,
    pull: PullId,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.table).remove(&self.pull);
    }
}

fn lock(table: &Table) -> MutexGuard<'_, BTreeMap<PullId, mpsc::Sender<Order>>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
