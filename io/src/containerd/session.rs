//! One connection to containerd from the attempt to its end: opens it, passes on the events,
//! says when it is over. Started by the adapter for each order to connect.

use std::{pin::pin, sync::Arc, time::Duration};

use containerd_client::types::Envelope;
use futures::StreamExt;
use spegel_core::Input;
use tokio::{sync::mpsc::Sender, time::sleep};
use tracing::{debug, warn};

use super::{
    ContainerdSettings, Current,
    client::{Client, ContainerdError},
    events::{self, Change},
};

/// How long the event stream may be silent before containerd is asked for a sign of life. A
/// question rather than HTTP/2 pings, because containerd (grpc-go) closes connections that ping
/// more often than each five minutes. Longer and a frozen containerd is noticed later; shorter
/// only wakes an idle node more often.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);

pub(super) struct Session {
    settings: Arc<ContainerdSettings>,
    current: Current,
    inputs: Sender<Input>,
}

/// How a session ends.
enum Ended {
    /// containerd can't be reached (any more).
    Disconnected(ContainerdError),
    /// The core is gone.
    InputsClosed,
}

impl From<ContainerdError> for Ended {
    fn from(error: ContainerdError) -> Self {
        Self::Disconnected(error)
    }
}

impl Session {
    pub(super) fn new(settings: Arc<ContainerdSettings>, current: Current, inputs: Sender<Input>) -> Self {
        Self { settings, current, inputs }
    }

    pub(super) async fn run(self) {
        let Err(ended) = self.converse().await;
        self.current.replace(None);
        match ended {
            Ended::Disconnected(error) => {
                let cause = error.to_string();
                // Fails only if the core is gone.
                drop(self.inputs.send(Input::ContainerdDisconnected { cause }).await);
            }
            Ended::InputsClosed => {}
        }
    }

    async fn converse(&self) -> Result<std::convert::Infallible, Ended> {
        let client = Client::connect(&self.settings).await?;
        let version = client.version().await?;
        let mut events = pin!(client.events());
        // containerd acknowledges a subscription with the first event only. What it answers after
        // having received the subscription is the next best sign; `biased` sends that first.
        let mut early = None;
        tokio::select! {
            biased;
            event = events.next() => early = Some(event),
            answer = client.version() => { answer?; }
        }
        self.current.replace(Some(client.clone()));
        self.send(Input::ContainerdConnected { version }).await?;
        if let Some(event) = early {
            self.pass_on(&client, event).await?;
        }
        loop {
            tokio::select! {
                event = events.next() => self.pass_on(&client, event).await?,
                () = sleep(PROBE_INTERVAL) => { client.version().await?; }
            }
        }
    }

    async fn pass_on(
        &self,
        client: &Client,
        event: Option<Result<Envelope, ContainerdError>>,
    ) -> Result<(), Ended> {
        let envelope = event.ok_or(ContainerdError::EventsEnded)??;
        match events::interpret(envelope, &self.settings.namespace) {
            Some(Change::Image(name)) => match client.image(name.clone()).await {
                Ok(Some(image)) => self.send(Input::ImageChanged(image)).await,
                // Deleted since; that event is on its way too.
                Ok(None) => self.send(Input::ImageDeleted { name }).await,
                // One odd image must not end the connection: the next listing heals this.
                Err(error) if error.is_answer() => {
                    warn!(image = %name, %error, "image that an event names cannot be read");
                    Ok(())
                }
                Err(error) => Err(error.into()),
            },
            Some(Change::ImageDeleted(name)) => self.send(Input::ImageDeleted { name }).await,
            Some(Change::Committed(digest)) => self.send(Input::BlobCommitted { digest }).await,
            None => {
                debug!("containerd event ignored");
                Ok(())
            }
        }
    }

    async fn send(&self, input: Input) -> Result<(), Ended> {
        self.inputs.send(input).await.map_err(|_| Ended::InputsClosed)
    }
}
