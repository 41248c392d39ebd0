//! Writing into a node's content store over containerd's own API, the way a pull does it: under a lease, so
//! that the collector leaves it alone, and with the label that says which repository it came from.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    CreateImageRequest, CreateRequest, Image as ImageRecord, WriteAction, WriteContentRequest,
};
use containerd_client::types::Descriptor;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::REGISTRY;
use crate::image::{Blob, Image};

const NAMESPACE: &str = "k8s.io";
/// One lease for all a test puts into a node; it goes with the node.
const LEASE: &str = "spegel-tests";
/// Under the 4 MiB a gRPC message may have, and the step `data` grows by in a real pull.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Commits one blob that no image names yet.
pub(crate) fn ingest(socket: &Path, repository: &str, blob: &Blob) -> Result<(), String> {
    blocking(async {
        let channel = connect(socket).await?;
        create_lease(&channel).await?;
        write(&channel, repository, blob).await
    })
}

/// Puts whole images there: all content a node needs, then the image's name.
pub(crate) fn store(socket: &Path, images: &[Image]) -> Result<(), String> {
    blocking(async {
        let channel = connect(socket).await?;
        create_lease(&channel).await?;
        for image in images {
            for blob in &image.needed {
                write(&channel, &image.repository, blob).await?;
            }
            let target = image.needed.iter().find(|blob| blob.digest == image.digest);
            let target = target.ok_or("an image's target is part of it")?;
            name(&channel, &image.by_tag(), target).await?;
        }
        Ok(())
    })
}

async fn connect(socket: &Path) -> Result<Channel, String> {
    containerd_client::connect(socket).await.map_err(|error| format!("{}: {error:?}", socket.display()))
}

async fn create_lease(channel: &Channel) -> Result<(), String> {
    let lease = CreateRequest { id: LEASE.to_owned(), labels: HashMap::new() };
    match LeasesClient::new(channel.clone()).create(request(lease)).await {
        Err(status) if status.code() != Code::AlreadyExists => Err(describe("lease", &status)),
        _ => Ok(()),
    }
}

async fn write(channel: &Channel, repository: &str, blob: &Blob) -> Result<(), String> {
    let data = fs::read(&blob.path).map_err(|error| format!("{}: {error}", blob.path.display()))?;
    let reference = format!("layer-{}", blob.digest);
    let mut messages: Vec<WriteContentRequest> = Vec::new();
    let mut offset = 0;
    for chunk in data.chunks(CHUNK_BYTES) {
        messages.push(WriteContentRequest {
            action: WriteAction::Write.into(),
            r#ref: reference.clone(),
            total: blob.size.cast_signed(),
            expected: blob.digest.clone(),
            offset,
            data: chunk.to_vec(),
            labels: HashMap::new(),
        });
        offset += chunk.len() as i64;
    }
    let source = format!("containerd.io/distribution.source.{REGISTRY}");
    messages.push(WriteContentRequest {
        action: WriteAction::Commit.into(),
        r#ref: reference,
        total: blob.size.cast_signed(),
        expected: blob.digest.clone(),
        offset,
        data: Vec::new(),
        labels: HashMap::from([(source, repository.to_owned())]),
    });
    let outcome = async {
        let mut answers = ContentClient::new(channel.clone())
            .write(request(tokio_stream::iter(messages)))
            .await?
            .into_inner();
        while answers.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    match outcome.await {
        Err(status) if status.code() != Code::AlreadyExists => Err(describe(&blob.digest, &status)),
        _ => Ok(()),
    }
}

async fn name(channel: &Channel, name: &str, target: &Blob) -> Result<(), String> {
    let target = Descriptor {
        media_type: target.media_type.clone(),
        digest: target.digest.clone(),
        size: target.size.cast_signed(),
        ..Descriptor::default()
    };
    let record = ImageRecord { name: name.to_owned(), target: Some(target), ..ImageRecord::default() };
    let create = CreateImageRequest { image: Some(record), ..CreateImageRequest::default() };
    let created = ImagesClient::new(channel.clone()).create(request(create)).await;
    created.map(drop).map_err(|status| describe(name, &status))
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().expect("plain ASCII"));
    request.metadata_mut().insert("containerd-lease", LEASE.parse().expect("plain ASCII"));
    request
}

fn describe(what: &str, status: &Status) -> String {
    format!("{what}: {}", status.message())
}

fn blocking<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}
