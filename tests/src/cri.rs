//! The three calls of the CRI image service the kubelet makes, over containerd's socket.
//!
//! The messages are written out by hand with the few fields in use: the whole API would bring a code
//! generator and thousands of lines for them.

use std::path::Path;
use std::time::Duration;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct ListImagesResponse {
    #[prost(message, repeated, tag = "1")]
    images: Vec<ListedImage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ListedImage {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, repeated, tag = "2")]
    repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    repo_digests: Vec<String>,
}

/// Pulls as the kubelet does.
pub(crate) fn pull(socket: &Path, image: &str, timeout: Duration) -> Result<String, String> {
    let response: PullImageResponse = call(socket, "PullImage", request(image), timeout)?;
    Ok(response.image_ref)
}

pub(crate) fn remove(socket: &Path, image: &str, timeout: Duration) -> Result<(), String> {
    let _done: Empty = call(socket, "RemoveImage", request(image), timeout)?;
    Ok(())
}

/// Names (tags and digests) of the images the kubelet would see.
pub(crate) fn list(socket: &Path, timeout: Duration) -> Result<Vec<String>, String> {
    let response: ListImagesResponse = call(socket, "ListImages", ImageRequest { image: None }, timeout)?;
    Ok(response.images.into_iter().flat_map(|image| [image.repo_tags, image.repo_digests].concat()).collect())
}

fn request(image: &str) -> ImageRequest {
    ImageRequest { image: Some(ImageSpec { image: image.to_owned() }) }
}

fn call<A, B>(socket: &Path, method: &str, message: A, timeout: Duration) -> Result<B, String>
where
    A: prost::Message + Send + Sync + 'static,
    B: prost::Message + Default + Send + Sync + 'static,
{
    let path =
        PathAndQuery::try_from(format!("/runtime.v1.ImageService/{method}")).expect("a method is a path");
    let exchange = async {
        let channel = containerd_client::connect(socket).await.map_err(|error| format!("{error:?}"))?;
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|error| format!("{error:?}"))?;
        let codec: ProstCodec<A, B> = ProstCodec::default();
        let response = client.unary(Request::new(message), path, codec).await;
        response
            .map(tonic::Response::into_inner)
            .map_err(|status: Status| format!("{method}: {}", status.message()))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let timed = tokio::time::timeout(timeout, exchange).await;
        timed.unwrap_or_else(|_| Err(format!("{method}: no answer within {timeout:?}")))
    })
}
