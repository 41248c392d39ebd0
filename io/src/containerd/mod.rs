//! Speaks to the node's containerd: carries out what the core orders, tells it what containerd
//! says. It only reads: no lease, label or image of its own. It decides nothing: an attempt to
//! connect is one attempt, a failed question is answered as failed, and the core says whether
//! and when to try again.
//!
//! A supervisor task takes the orders and runs each in a task of its own, so that none waits on
//! another. Every [`Output::ProbeContainerd`], [`Output::List`], [`Output::Inspect`] and
//! [`Output::ReadManifest`] gets exactly
//! one answer; every [`Output::ConnectContainerd`] gives one [`Input::ContainerdConnected`] and,
//! when that connection ends, one [`Input::ContainerdDisconnected`], or the latter alone. A
//! connection that another replaces goes without a word.

mod client;
mod events;
mod listing;
mod session;
mod survey;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use spegel_core::{Input, Inspection, ListedContent, Listing, ManifestRead, Output, oci::Digest};
use tokio::{
    sync::{
        Semaphore,
        mpsc::{Sender, UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    task::{JoinHandle, JoinSet},
};

pub use self::client::ContainerdError;
pub(crate) use self::survey::{Survey, listener_pid, survey};
use self::{
    client::{Client, within},
    session::Session,
};
use crate::content::{ContentDir, ContentPathError};

/// Most questions to containerd under way. More makes containerd's database wait on us, not the
/// other way round; fewer makes an import of many blobs slow to be announced.
const QUESTIONS_CONCURRENT_MAX: usize = 8;

/// Most manifests being read from disk. More takes disk and blocking threads from the blobs being
/// served; fewer lets one slow read hold up the others.
const READS_CONCURRENT_MAX: usize = 4;

/// Where containerd is.
#[derive(Clone, Debug)]
pub struct ContainerdSettings {
    /// Its socket.
    pub socket: PathBuf,
    /// The namespace to mirror; content of any other is invisible.
    pub namespace: String,
    /// Its content store, `<root>/io.containerd.content.v1.content`.
    pub content_path: PathBuf,
}

impl ContainerdSettings {
    /// Makes sure, when the process starts, that content can be served from where the settings
    /// say. The socket is not looked at: containerd may start later.
    ///
    /// # Errors
    ///
    /// [`ContentPathError`], in one line for the operator.
    pub fn check_content_path(&self) -> Result<(), ContentPathError> {
        ContentDir::new(&self.content_path).check()
    }
}

/// The adapter; lives in the task that [`Containerd::spawn`] starts.
#[derive(Debug)]
pub struct Containerd {
    settings: Arc<ContainerdSettings>,
    content: ContentDir,
    inputs: Sender<Input>,
    current: Current,
    session: Option<JoinHandle<()>>,
    questions: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

/// Carries orders to the adapter, which ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct ContainerdHandle {
    // Unbounded here, bounded by the core: it has at most one connection and one listing under
    // way, and paces its inspections and manifest reads to a bounded number. A bound here could
    // only block the core's loop or drop an order that the core waits on for ever.
    orders: UnboundedSender<Output>,
}

/// The open connection, while there is one. The session puts it there before the core hears of
/// it, so that an order given upon that finds it.
#[derive(Clone, Debug, Default)]
struct Current(Arc<Mutex<Option<Client>>>);

impl Current {
    fn replace(&self, client: Option<Client>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    fn client(&self) -> Result<Client, ContainerdError> {
        let client = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        client.ok_or(ContainerdError::NotConnected)
    }
}

impl ContainerdHandle {
    /// Carries out [`Output::ConnectContainerd`], [`Output::ProbeContainerd`], [`Output::List`],
    /// [`Output::Inspect`] or [`Output::ReadManifest`]; returns at once. Any other output is not
    /// containerd's and ignored.
    pub fn perform(&self, output: Output) {
        // The adapter is gone only when the process ends.
        drop(self.orders.send(output));
    }
}

impl Containerd {
    /// Starts the adapter, which does nothing until it is ordered to connect.
    pub fn spawn(settings: ContainerdSettings, inputs: Sender<Input>) -> ContainerdHandle {
        let (orders, received) = unbounded_channel();
        let containerd = Self {
            content: ContentDir::new(&settings.content_path),
            settings: Arc::new(settings),
            inputs,
            current: Current::default(),
            session: None,
            questions: Arc::new(Semaphore::new(QUESTIONS_CONCURRENT_MAX)),
            reads: Arc::new(Semaphore::new(READS_CONCURRENT_MAX)),
        };
        tokio::spawn(containerd.run(received));
        ContainerdHandle { orders }
    }

    async fn run(mut self, mut orders: UnboundedReceiver<Output>) {
        // Dropped with this future, which aborts what is still under way.
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.carry_out(order, &mut tasks).await,
                    None => break,
                },
                Some(_) = tasks.join_next() => {}
            }
        }
        self.end_session().await;
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all other outputs are other adapters'")]
    async fn carry_out(&mut self, order: Output, tasks: &mut JoinSet<()>) {
        match order {
            Output::ConnectContainerd { timeout } => {
                self.end_session().await;
                let session = Session::new(
                    Arc::clone(&self.settings),
                    self.current.clone(),
                    self.inputs.clone(),
                    timeout,
                );
                self.session = Some(tokio::spawn(session.run()));
            }
            Output::ProbeContainerd { timeout } => {
                let current = self.current.clone();
                // Needs no permit: it is to be heard however many questions are under way.
                self.answer(tasks, async move {
                    match within(timeout, "a sign of life", probe(&current)).await {
                        Ok(()) => Input::ContainerdProbed,
                        Err(error) => Input::ContainerdProbeFailed { cause: error.to_string() },
                    }
                });
            }
            Output::List { timeout } => {
                let (current, questions) = (self.current.clone(), Arc::clone(&self.questions));
                self.answer(tasks, async move {
                    match within(timeout, "listing", list(&current, &questions)).await {
                        Ok(listing) => Input::Listed(listing),
                        Err(error) => Input::ListFailed { cause: error.to_string() },
                    }
                });
            }
            Output::Inspect { digest, timeout } => {
                let (current, questions) = (self.current.clone(), Arc::clone(&self.questions));
                self.answer(tasks, async move {
                    let outcome =
                        match within(timeout, "Content.Info", inspect(&current, &questions, &digest)).await {
                            Ok(Some(content)) => Inspection::Present(content),
                            Ok(None) => Inspection::Absent,
                            Err(error) => Inspection::Failed { cause: error.to_string() },
                        };
                    Input::Inspected { digest, outcome }
                });
            }
            Output::ReadManifest { digest, timeout } => {
                let (content, reads) = (self.content.clone(), Arc::clone(&self.reads));
                self.answer(tasks, async move {
                    let outcome = tokio::time::timeout(timeout, read(content, reads, digest)).await;
                    let outcome = outcome.unwrap_or_else(|_| ManifestRead::Failed {
                        cause: format!("reading took longer than {timeout:?}"),
                    });
                    Input::ManifestRead { digest, outcome }
                });
            }
            other => tracing::error!(order = ?other, "order is not for containerd"),
        }
    }

    /// Has the core told what `answer` comes to.
    fn answer(&self, tasks: &mut JoinSet<()>, answer: impl Future<Output = Input> + Send + 'static) {
        let inputs = self.inputs.clone();
        tasks.spawn(async move {
            // Fails only if the core is gone.
            drop(inputs.send(answer.await).await);
        });
    }

    /// Ends the session so that nothing more is heard of it.
    async fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            session.abort();
            drop(session.await);
        }
        self.current.replace(None);
    }
}

async fn probe(current: &Current) -> Result<(), ContainerdError> {
    current.client()?.version().await.map(drop)
}

async fn list(current: &Current, permits: &Semaphore) -> Result<Listing, ContainerdError> {
    let _permit = permits.acquire().await;
    current.client()?.list().await
}

async fn inspect(
    current: &Current,
    permits: &Semaphore,
    digest: &Digest,
) -> Result<Option<ListedContent>, ContainerdError> {
    let _permit = permits.acquire().await;
    current.client()?.content(digest).await
}

/// Reads in a task of its own, which keeps its permit until the disk has answered even when nobody
/// waits any more: a disk that hangs must not get more and more threads to wait for it.
async fn read(content: ContentDir, permits: Arc<Semaphore>, digest: Digest) -> ManifestRead {
    let permit = permits.acquire_owned().await;
    let reading = tokio::spawn(async move {
        let outcome = content.read_manifest(&digest).await;
        drop(permit);
        outcome
    });
    reading.await.unwrap_or_else(|error| ManifestRead::Failed { cause: error.to_string() })
}
