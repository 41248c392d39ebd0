//! Reads requests: OCI distribution-spec paths, and the query and headers that containerd's
//! mirrors and other nodes add. Pure.

use http::{HeaderMap, Uri, header};
use spegel_core::{
    ByteRange, PullKind,
    oci::{Digest, Repository, Tag},
};

use super::error::OciError;

/// Set to `true` by nodes that ask on behalf of a client: only local content is wanted, so
/// that no two nodes ever ask each other in a circle.
pub(crate) const MIRRORED_HEADER: &str = "x-spegel-mirrored";

/// Longest path and query, in bytes. The longest that a valid repository, tag and registry
/// give is some 700; longer ones only cost work.
const URI_LENGTH_MAX: usize = 2048;

/// Longest registry, in bytes: a DNS name and a port.
const REGISTRY_LENGTH_MAX: usize = 255 + 6;

/// What a manifest or blob is asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A manifest, by tag.
    Tag(Tag),
    /// A manifest, by digest.
    Manifest(Digest),
    /// A blob.
    Blob(Digest),
}

impl Wanted {
    pub(crate) const fn is_manifest(&self) -> bool {
        match self {
            Self::Tag(_) | Self::Manifest(_) => true,
            Self::Blob(_) => false,
        }
    }

    pub(crate) const fn digest(&self) -> Option<Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Manifest(digest) | Self::Blob(digest) => Some(*digest),
        }
    }
}

/// A request for content, read and found valid.
#[derive(Clone, Debug)]
pub(crate) struct ContentRequest {
    pub(crate) registry: String,
    pub(crate) repository: Repository,
    pub(crate) wanted: Wanted,
    /// Of blobs only: manifests are small.
    pub(crate) range: Option<ByteRange>,
    /// HEAD instead of GET.
    pub(crate) head: bool,
}

impl ContentRequest {
    /// What the content is known by in the cluster, and in messages to people: the digest, or
    /// `registry/repository:tag`.
    pub(crate) fn identifier(&self) -> String {
        match &self.wanted {
            Wanted::Tag(tag) => format!("{}/{}:{tag}", self.registry, self.repository),
            Wanted::Manifest(digest) | Wanted::Blob(digest) => digest.to_string(),
        }
    }

    /// What kind of pull it is.
    pub(crate) const fn kind(&self) -> PullKind {
        match (self.head, self.wanted.is_manifest()) {
            (true, _) => PullKind::Head,
            (false, true) => PullKind::Manifest,
            (false, false) => PullKind::Blob,
        }
    }

    /// What was asked for, for people: [`Self::identifier`] with the repository in any case.
    pub(crate) fn name(&self) -> String {
        match &self.wanted {
            Wanted::Tag(_) => self.identifier(),
            Wanted::Manifest(digest) | Wanted::Blob(digest) => {
                format!("{}/{}@{digest}", self.registry, self.repository)
            }
        }
    }

    /// The path and query to ask another node with.
    pub(crate) fn path_and_query(&self) -> String {
        let (repository, registry) = (&self.repository, self.registry.replace(':', "%3A"));
        let registry = registry.replace('[', "%5B").replace(']', "%5D");
        match &self.wanted {
            Wanted::Tag(tag) => format!("/v2/{repository}/manifests/{tag}?ns={registry}"),
            Wanted::Manifest(digest) => format!("/v2/{repository}/manifests/{digest}?ns={registry}"),
            Wanted::Blob(digest) => format!("/v2/{repository}/blobs/{digest}?ns={registry}"),
        }
    }
}

/// Whether a path asks for nothing but the version of the API.
pub(crate) fn is_base(path: &str) -> bool {
    matches!(path, "/v2" | "/v2/")
}

/// Reads a request for content. The method is the caller's to check.
pub(crate) fn parse(uri: &Uri, headers: &HeaderMap, head: bool) -> Result<ContentRequest, OciError> {
    let length = uri.path_and_query().map_or(0, |text| text.as_str().len());
    if length > URI_LENGTH_MAX {
        return Err(OciError::UriTooLong { max: URI_LENGTH_MAX });
    }
    let path = percent_decode(uri.path()).ok_or(OciError::UnknownEndpoint)?;
    let (repository, kind, reference) = split(&path).ok_or(OciError::UnknownEndpoint)?;
    let wanted = match kind {
        "blobs" => Wanted::Blob(reference.parse().map_err(OciError::DigestInvalid)?),
        // A tag has no colon, a digest always has.
        "manifests" if reference.contains(':') => {
            Wanted::Manifest(reference.parse().map_err(OciError::DigestInvalid)?)
        }
        "manifests" => Wanted::Tag(reference.parse().map_err(OciError::TagInvalid)?),
        _ => return Err(OciError::UnknownEndpoint),
    };
    let repository = repository.parse().map_err(OciError::RepositoryInvalid)?;
    let registry = registry(uri.query().unwrap_or_default())?;
    let range = if wanted.is_manifest() { None } else { range(headers) };
    Ok(ContentRequest { registry, repository, wanted, range, head })
}

/// Whether another node asks on behalf of a client.
pub(crate) fn is_mirrored(headers: &HeaderMap) -> bool {
    headers.get(MIRRORED_HEADER).is_some_and(|value| value.as_bytes() == b"true")
}

/// `/v2/<repository>/<kind>/<reference>`; the repository has slashes of its own.
fn split(path: &str) -> Option<(&str, &str, &str)> {
    let (rest, reference) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
    let (repository, kind) = rest.rsplit_once('/')?;
    Some((repository, kind, reference))
}

fn registry(query: &str) -> Result<String, OciError> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == "ns").ok_or(OciError::RegistryMissing)?;
    let registry = percent_decode(value).ok_or(OciError::RegistryInvalid)?;
    if registry.is_empty() {
        return Err(OciError::RegistryMissing);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if registry.len() > REGISTRY_LENGTH_MAX || !registry.bytes().all(allowed) {
        return Err(OciError::RegistryInvalid);
    }
    Ok(registry)
}

/// A range that is malformed, of another unit, or one of several is ignored (RFC 9110,
/// section 14.2): the client gets the whole blob.
fn range(headers: &HeaderMap) -> Option<ByteRange> {
    ByteRange::parse(headers.get(header::RANGE)?.to_str().ok()?).ok().flatten()
}

fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high << 4 | low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read(uri: &str) -> Result<ContentRequest, OciError> {
        parse(&uri.parse().unwrap(), &HeaderMap::new(), false)
    }

    #[test]
    fn requests_of_containerd_are_read_and_passed_on() {
        for (uri, identifier) in [
            ("/v2/library/alpine/manifests/3.20?ns=docker.io", "docker.io/library/alpine:3.20"),
            ("/v2/a/b/c/manifests/v1?ns=localhost%3A5000", "localhost:5000/a/b/c:v1"),
            ("/v2/a/manifests/v1?ns=%5B::1%5D:5000", "[::1]:5000/a:v1"),
            ("/v2/blobs/manifests/manifests?x=1&ns=a.test", "a.test/blobs:manifests"),
            (&format!("/v2/a/b/blobs/{DIGEST}?ns=docker.io"), DIGEST),
            (&format!("/v2/a/b/blobs/{}?ns=docker.io", DIGEST.replace(':', "%3A")), DIGEST),
            (&format!("/v2/a/manifests/{DIGEST}?ns=docker.io"), DIGEST),
        ] {
            let request = read(uri).unwrap();
            assert_eq!(request.identifier(), identifier, "{uri}");
            let again = read(&request.path_and_query()).unwrap();
            assert_eq!((again.registry, again.wanted), (request.registry, request.wanted), "{uri}");
        }
    }

    #[test]
    fn each_kind_of_nonsense_has_its_error() {
        let unknown = OciError::UnknownEndpoint;
        let cases = [
            ("/v2/a/tags/list?ns=a.test", unknown.clone()),
            ("/v2/_catalog", unknown.clone()),
            ("/v2/manifests/v1?ns=a.test", unknown.clone()),
            ("/v2/a%FF/manifests/v1?ns=a.test", unknown.clone()),
            ("/v2/a%2/manifests/%2", unknown),
            ("/v2/a/manifests/v1", OciError::RegistryMissing),
            ("/v2/a/manifests/v1?ns=", OciError::RegistryMissing),
            ("/v2/a/manifests/v1?namespace=a.test", OciError::RegistryMissing),
            ("/v2/a/manifests/v1?ns=a/b", OciError::RegistryInvalid),
            ("/v2/a/manifests/v1?ns=a%0Ab", OciError::RegistryInvalid),
            ("/v2/a/blobs/v1?ns=a.test", OciError::DigestInvalid(spegel_core::oci::DigestError::NoAlgorithm)),
        ];
        for (uri, error) in cases {
            assert_eq!(read(uri).unwrap_err(), error, "{uri}");
        }
        let tag = format!("/v2/a/manifests/{}?ns=a.test", "x".repeat(129));
        assert!(matches!(read(&tag), Err(OciError::TagInvalid(_))));
        assert!(matches!(read("/v2/A/manifests/v1?ns=a.test"), Err(OciError::RepositoryInvalid(_))));
        assert!(matches!(read("/v2//a/manifests/v1?ns=a.test"), Ok(_) | Err(OciError::RepositoryInvalid(_))));
        let long = format!("/v2/a/manifests/v1?ns={}", "a".repeat(REGISTRY_LENGTH_MAX + 1));
        assert_eq!(read(&long).unwrap_err(), OciError::RegistryInvalid);
        let long = format!("/v2/a/manifests/v1?ns=a.test&{}", "a".repeat(URI_LENGTH_MAX));
        assert_eq!(read(&long).unwrap_err(), OciError::UriTooLong { max: URI_LENGTH_MAX });
    }

    #[test]
    fn range_counts_for_blobs_only_and_when_well_formed() {
        let range_of = |uri: &str, range: &'static str| {
            let headers = HeaderMap::from_iter([(header::RANGE, range.parse().unwrap())]);
            parse(&uri.parse().unwrap(), &headers, false).unwrap().range
        };
        let blob = format!("/v2/a/blobs/{DIGEST}?ns=a.test");
        assert_eq!(range_of(&blob, "bytes=5-"), Some(ByteRange::From(5)));
        assert_eq!(range_of(&blob, "bytes=5"), None);
        assert_eq!(range_of("/v2/a/manifests/v1?ns=a.test", "bytes=5-"), None);
    }
}
