//! What containerd says of itself, for the check. Asked over a connection of its own, so that the mirror's
//! is not disturbed.

use std::{collections::BTreeMap, time::Duration};

use containerd_client::services::v1::{
    ListContentRequest, PluginsRequest, introspection_client::IntrospectionClient,
};
use spegel_core::oci::Digest;
use tokio::net::UnixStream;
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::{
    ContainerdSettings,
    client::{Client, ContainerdError, MESSAGE_BYTES_MAX, within},
    listing,
};

/// How much of containerd's content is looked for in the content store. Less and a few blobs that are
/// rightly gone look like another store; more only costs time.
const SAMPLE_MAX: usize = 16;

/// What could be learnt; each question stands for itself.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Its version, or why it did not answer.
    pub(crate) version: Result<String, String>,
    /// Its CRI plugin's configuration as JSON, or why it did not say.
    pub(crate) cri: Result<serde_json::Value, String>,
    /// Where its content store is.
    pub(crate) content_root: Option<String>,
    /// Some content of the mirrored namespace.
    pub(crate) sample: Option<Vec<Digest>>,
}

/// Asks each question once, giving each answer so long.
pub(crate) async fn survey(settings: &ContainerdSettings, timeout: Duration) -> Survey {
    let client = match within(timeout, "connecting", Client::connect(settings)).await {
        Ok(client) => client,
        Err(ContainerdError::Socket { cause, .. }) => return Survey::nothing(&cause.to_string()),
        Err(error) => return Survey::nothing(&error.to_string()),
    };
    let (version, cri, content_root, sample) = tokio::join!(
        within(timeout, "Version", client.version()),
        within(timeout, "Status", client.cri_config()),
        within(timeout, "Plugins", client.content_root()),
        within(timeout, "Content.List", client.sample()),
    );
    Survey {
        version: version.map_err(|error| error.to_string()),
        cri: cri.map_err(|error| error.to_string()),
        content_root: content_root.ok().flatten(),
        sample: sample.ok(),
    }
}

/// The process that listens on the socket, where it can be seen from here: a container with processes of
/// its own cannot.
pub(crate) async fn listener_pid(settings: &ContainerdSettings) -> Option<i32> {
    let stream = UnixStream::connect(&settings.socket).await.ok()?;
    // 0 stands for a process that is not in this process namespace.
    stream.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
}

impl Survey {
    fn nothing(cause: &str) -> Self {
        Self { version: Err(cause.to_owned()), cri: Err(cause.to_owned()), content_root: None, sample: None }
    }
}

/// `runtime.v1.StatusRequest`, of the Container Runtime Interface.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

/// `runtime.v1.StatusResponse`, without its status.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(btree_map = "string, string", tag = "2")]
    info: BTreeMap<String, String>,
}

impl Client {
    async fn cri_config(&self) -> Result<serde_json::Value, ContainerdError> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let failed =
            |cause: String| ContainerdError::Rpc { rpc: "Status", code: tonic::Code::Unknown, cause };
        grpc.ready().await.map_err(|error| failed(error.to_string()))?;
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/Status");
        let codec: ProstCodec<StatusRequest, StatusResponse> = ProstCodec::default();
        let reply = grpc.unary(Request::new(StatusRequest { verbose: true }), path, codec).await;
        let info = reply.map_err(|status| ContainerdError::rpc("Status", &status))?.into_inner().info;
        let config = info.get("config").ok_or_else(|| failed("it tells no configuration".to_owned()))?;
        serde_json::from_str(config).map_err(|error| failed(error.to_string()))
    }

    async fn content_root(&self) -> Result<Option<String>, ContainerdError> {
        let mut client = IntrospectionClient::new(self.channel.clone());
        let request = PluginsRequest { filters: vec!["type==io.containerd.content.v1".to_owned()] };
        let reply = client.plugins(self.request(request)).await;
        let plugins = reply.map_err(|status| ContainerdError::rpc("Plugins", &status))?.into_inner().plugins;
        Ok(plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root")))
    }

    async fn sample(&self) -> Result<Vec<Digest>, ContainerdError> {
        let in_contents = |status| ContainerdError::rpc("Content.List", &status);
        let mut client = self.contents();
        let reply = client.list(self.request(ListContentRequest::default())).await;
        let mut parts = reply.map_err(in_contents)?.into_inner();
        let mut digests = Vec::new();
        while let Some(part) = parts.message().await.map_err(in_contents)? {
            let contents = part.info.into_iter().filter_map(listing::content);
            digests.extend(contents.map(|content| content.digest).take(SAMPLE_MAX - digests.len()));
            if digests.len() == SAMPLE_MAX {
                break;
            }
        }
        Ok(digests)
    }
}
