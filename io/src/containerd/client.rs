//! One connection to containerd and the questions asked over it. Used by the adapter's tasks.

use std::{io, path::PathBuf, time::Duration};

use containerd_client::{
    services::v1::{
        GetImageRequest, InfoRequest, ListContentRequest, ListImagesRequest, SubscribeRequest,
        content_client::ContentClient, events_client::EventsClient, images_client::ImagesClient,
        version_client::VersionClient,
    },
    types::Envelope,
};
use futures::{Stream, TryFutureExt, TryStreamExt};
use hyper_util::rt::TokioIo;
use spegel_core::{ListedContent, ListedImage, Listing, oci::Digest};
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

use super::{ContainerdSettings, events, listing};

/// Largest message taken from containerd. It sends at most 16 MiB unless configured otherwise, and
/// the list of images comes in one message. Smaller and a node with very many images can't be
/// listed; larger only lets a broken containerd take more of our memory.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most content taken from one listing. Smaller and a large node can't be listed; larger only
/// lets a broken containerd take more of our memory.
const CONTENTS_MAX: usize = 256 * 1024;

/// Why containerd could not be asked, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// There is no connection at the moment.
    #[error("not connected to containerd")]
    NotConnected,
    /// The socket is missing or refuses.
    #[error("containerd socket {socket}: {cause}")]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// What listens on the socket does not speak HTTP/2.
    #[error("containerd socket: {cause}")]
    Handshake {
        /// What went wrong.
        cause: String,
    },
    /// The namespace can't be sent.
    #[error("containerd namespace {namespace:?} holds characters that no namespace has")]
    Namespace {
        /// The namespace.
        namespace: String,
    },
    /// containerd did not answer in time.
    #[error("containerd: {what} took longer than {timeout:?}")]
    TimedOut {
        /// What was wanted of it.
        what: &'static str,
        /// What it was given.
        timeout: Duration,
    },
    /// containerd answered with an error, or the connection broke.
    #[error("containerd {rpc}: {cause}")]
    Rpc {
        /// What it was asked.
        rpc: &'static str,
        /// The kind of error.
        code: Code,
        /// What went wrong.
        cause: String,
    },
    /// The event stream ended.
    #[error("containerd closed its event stream")]
    EventsEnded,
    /// There is more content than is taken.
    #[error("containerd lists more than {CONTENTS_MAX} blobs")]
    TooMuchContent,
}

impl ContainerdError {
    pub(super) fn rpc(rpc: &'static str, status: &Status) -> Self {
        Self::Rpc { rpc, code: status.code(), cause: explain(status) }
    }

    /// Whether containerd is alive and merely did not like the question.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            Self::Rpc { code, .. } => !matches!(
                code,
                Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unauthenticated
            ),
            Self::NotConnected
            | Self::Socket { .. }
            | Self::Handshake { .. }
            | Self::Namespace { .. }
            | Self::TimedOut { .. }
            | Self::EventsEnded
            | Self::TooMuchContent => false,
        }
    }
}

/// An error's whole chain on one line: tonic's own texts hide what happened ("transport error").
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// An open connection. It is never dialled again: one that broke stays broken, so that no
/// question is answered by a containerd whose events are not heard.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) channel: Channel,
    namespace: AsciiMetadataValue,
}

impl Client {
    pub(super) async fn connect(settings: &ContainerdSettings) -> Result<Self, ContainerdError> {
        let namespace = AsciiMetadataValue::try_from(settings.namespace.as_str())
            .map_err(|_| ContainerdError::Namespace { namespace: settings.namespace.clone() })?;
        let stream = UnixStream::connect(&settings.socket)
            .await
            .map_err(|cause| ContainerdError::Socket { socket: settings.socket.clone(), cause })?;
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| io::Error::other("the connection was lost")) }
        });
        // The address is never looked at, but HTTP wants one.
        let channel = Endpoint::from_static("http://containerd")
            .connect_with_connector(connector)
            .await
            .map_err(|error| ContainerdError::Handshake { cause: explain(&error) })?;
        Ok(Self { channel, namespace })
    }

    pub(super) async fn version(&self) -> Result<String, ContainerdError> {
        let mut client = VersionClient::new(self.channel.clone());
        let reply = client.version(Request::new(())).await;
        Ok(reply.map_err(|status| ContainerdError::rpc("Version", &status))?.into_inner().version)
    }

    /// The events that matter of the mirrored namespace.
    ///
    /// containerd sends no answer to the subscription before the first event, so there is nothing to
    /// wait for: the request is on its way once the stream has been polled.
    pub(super) fn events(&self) -> impl Stream<Item = Result<Envelope, ContainerdError>> + Send + use<> {
        let namespace = self.namespace.to_str().unwrap_or_default().to_owned();
        let mut client = EventsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let filters = events::filters(&namespace);
        async move { client.subscribe(SubscribeRequest { filters }).await }
            .map_ok(tonic::Response::into_inner)
            .try_flatten_stream()
            .map_err(|status| ContainerdError::rpc("Subscribe", &status))
    }

    /// The image of that name; `None` if there is none.
    pub(super) async fn image(&self, name: String) -> Result<Option<ListedImage>, ContainerdError> {
        let mut client = self.images();
        let reply = client.get(self.request(GetImageRequest { name })).await;
        Ok(found("Images.Get", reply)?.and_then(|reply| reply.image).and_then(listing::image))
    }

    /// The content of that digest; `None` if there is none in the namespace.
    pub(super) async fn content(&self, digest: &Digest) -> Result<Option<ListedContent>, ContainerdError> {
        let mut client = self.contents();
        let request = self.request(InfoRequest { digest: digest.to_string() });
        let reply = client.info(request).await;
        Ok(found("Content.Info", reply)?.and_then(|reply| reply.info).and_then(listing::content))
    }

    /// All images, then all content: an image that comes in between is reported by an event, and
    /// no image is listed before its content.
    pub(super) async fn list(&self) -> Result<Listing, ContainerdError> {
        let mut client = self.images();
        let reply = client.list(self.request(ListImagesRequest::default())).await;
        let reply = reply.map_err(|status| ContainerdError::rpc("Images.List", &status))?;
        let images = reply.into_inner().images.into_iter().filter_map(listing::image).collect();

        let in_contents = |status| ContainerdError::rpc("Content.List", &status);
        let mut client = self.contents();
        let reply = client.list(self.request(ListContentRequest::default())).await;
        let mut parts = reply.map_err(in_contents)?.into_inner();
        let mut contents = Vec::new();
        while let Some(part) = parts.message().await.map_err(in_contents)? {
            if contents.len() + part.info.len() > CONTENTS_MAX {
                return Err(ContainerdError::TooMuchContent);
            }
            contents.extend(part.info.into_iter().filter_map(listing::content));
        }
        Ok(Listing { images, contents })
    }

    fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn contents(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }
}

/// Bounds what is wanted of containerd by the time that the core gave it. Only tells a dead
/// containerd from a living one, where a socket that accepts and then says nothing gives no error.
pub(super) async fn within<T>(
    limit: Duration,
    what: &'static str,
    answer: impl Future<Output = Result<T, ContainerdError>>,
) -> Result<T, ContainerdError> {
    timeout(limit, answer).await.unwrap_or(Err(ContainerdError::TimedOut { what, timeout: limit }))
}

fn found<T>(
    rpc: &'static str,
    reply: Result<tonic::Response<T>, Status>,
) -> Result<Option<T>, ContainerdError> {
    match reply {
        Ok(reply) => Ok(Some(reply.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(ContainerdError::rpc(rpc, &status)),
    }
}
