//! One connection to containerd from the attempt to its end: opens it, passes on the events,
//! says when it is over. Started by the adapter for each order to connect.

use std::{sync::Arc, time::Duration};

use containerd_client::types::Envelope;
use futures::StreamExt;
use spegel_core::Input;
use tokio::sync::mpsc::Sender;
use tracing::{debug, warn};

use super::{
    ContainerdSettings, Current,
    client::{Client, ContainerdError, within},
    events::{self, Change},
};

pub(super) struct Session {
    settings: Arc<ContainerdSettings>,
    current: Current,
    inputs: Sender<Input>,
    timeout: Duration,
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
    /// A session of which opening, and each question, may take so long.
    pub(super) fn new(
        settings: Arc<ContainerdSettings>,
        current: Current,
        inputs: Sender<Input>,
        timeout: Duration,
    ) -> Self {
        Self { settings, current, inputs, timeout }
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
        let opening = async {
            let client = Client::connect(&self.settings).await?;
            let version = client.version().await?;
            let mut events = Box::pin(client.events());
            // containerd acknowledges a subscription with the first event only. What it answers after
            // having received the subscription is the next best sign; `biased` sends that first.
            let early = tokio::select! {
                biased;
                event = events.next() => Some(event),
                answer = client.version() => { answer?; None }
            };
            Ok((client, version, events, early))
        };
        let (client, version, mut events, early) = within(self.timeout, "connecting", opening).await?;
        self.current.replace(Some(client.clone()));
        self.send(Input::ContainerdConnected { version }).await?;
        if let Some(event) = early {
            self.pass_on(&client, event).await?;
        }
        loop {
            let event = events.next().await;
            self.pass_on(&client, event).await?;
        }
    }

    async fn pass_on(
        &self,
        client: &Client,
        event: Option<Result<Envelope, ContainerdError>>,
    ) -> Result<(), Ended> {
        let envelope = event.ok_or(ContainerdError::EventsEnded)??;
        match events::interpret(envelope, &self.settings.namespace) {
            Some(Change::Image(name)) => {
                match within(self.timeout, "Images.Get", client.image(name.clone())).await {
                    Ok(Some(image)) => self.send(Input::ImageChanged(image)).await,
                    // Deleted since; that event is on its way too.
                    Ok(None) => self.send(Input::ImageDeleted { name }).await,
                    // One odd image must not end the connection: the next listing heals this.
                    Err(error) if error.is_answer() => {
                        warn!(image = %name, %error, "image that an event names cannot be read");
                        Ok(())
                    }
                    Err(error) => Err(error.into()),
                }
            }
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
