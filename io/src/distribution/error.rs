//! Errors as the OCI distribution-spec writes them ("Error Codes").

use axum::{body::Body, response::Response};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use spegel_core::{
    RefuseReason, Stranger,
    oci::{DigestError, ReferenceError},
};

/// Why a request is not answered with content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OciError {
    /// The path is none that a registry has.
    #[error(
        "there is no such endpoint here: expected /v2/<name>/manifests/<reference> or /v2/<name>/blobs/<digest>"
    )]
    UnknownEndpoint,
    /// The method is neither GET nor HEAD.
    #[error("this registry is read only: expected GET or HEAD")]
    MethodNotAllowed,
    /// The path and query are longer than any image needs.
    #[error("path and query are too long: at most {max} bytes are allowed")]
    UriTooLong {
        /// How long they may be.
        max: usize,
    },
    /// The query names no registry.
    #[error("query parameter ns is missing: expected the registry that is mirrored, as in ?ns=docker.io")]
    RegistryMissing,
    /// The query names something else than a registry.
    #[error(
        "query parameter ns is not a registry: expected a host name and perhaps a port, as in ?ns=docker.io"
    )]
    RegistryInvalid,
    /// The repository is not one.
    #[error("{0}")]
    RepositoryInvalid(ReferenceError),
    /// The digest is not one.
    #[error("{0}")]
    DigestInvalid(DigestError),
    /// The tag is not one.
    #[error("{0}")]
    TagInvalid(ReferenceError),
    /// The configuration excludes the image from mirroring.
    #[error("{registry}/{repository} is excluded from mirroring")]
    Filtered {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
    },
    /// The credentials are missing or wrong.
    #[error("invalid credentials")]
    Unauthorized,
    /// It says that a node asks, but none of this cluster does.
    #[error("{0}")]
    Stranger(Stranger),
    /// The range has nothing in common with the blob.
    #[error("the range lies outside the blob of {size} bytes")]
    RangeInvalid {
        /// Size of the blob.
        size: u64,
    },
    /// The manifest is there but is none that a registry could serve.
    #[error("{identifier} is not a manifest")]
    NotAManifest {
        /// Its digest or name.
        identifier: String,
    },
    /// A node asked this one for content that is not here.
    #[error("{identifier} is not on this node")]
    NotLocal {
        /// Its digest or name.
        identifier: String,
        /// Whether a manifest was asked for.
        manifest: bool,
    },
    /// No other node could answer.
    #[error("{} {identifier}", why_refused(*reason))]
    Refused {
        /// Its digest or name.
        identifier: String,
        /// Whether a manifest was asked for.
        manifest: bool,
        /// Why.
        reason: RefuseReason,
        /// How many attempts were made at other nodes.
        attempts: u32,
    },
}

/// The first four are those of the Go implementation.
const fn why_refused(reason: RefuseReason) -> &'static str {
    match reason {
        RefuseReason::NobodyHasIt => "could not find peer for",
        RefuseReason::HoldersExhausted => "all request retries exhausted for",
        RefuseReason::LookupUnanswered => "waited too long for new peer with no inflight fetches for",
        RefuseReason::DeadlineExceeded => "waited too long for inflight dials to complete for",
        RefuseReason::Overloaded => "too many pulls are being mirrored to add",
        RefuseReason::ShuttingDown => "the mirror is shutting down and does not serve",
    }
}

#[derive(Serialize)]
struct Errors {
    errors: [Error; 1],
}

/// The order of the fields is part of the contract.
#[derive(Serialize)]
struct Error {
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Detail>,
    message: String,
}

#[derive(Serialize)]
struct Detail {
    attempts: u32,
}

impl OciError {
    const fn status(&self) -> StatusCode {
        match self {
            Self::RegistryMissing
            | Self::RegistryInvalid
            | Self::RepositoryInvalid(_)
            | Self::DigestInvalid(_)
            | Self::TagInvalid(_) => StatusCode::BAD_REQUEST,
            // containerd goes on to the upstream registry.
            Self::UnknownEndpoint
            | Self::Filtered { .. }
            | Self::NotAManifest { .. }
            | Self::NotLocal { .. }
            | Self::Refused { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UriTooLong { .. } => StatusCode::URI_TOO_LONG,
            Self::Unauthorized | Self::Stranger(_) => StatusCode::UNAUTHORIZED,
            Self::RangeInvalid { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
        }
    }

    const fn code(&self) -> &'static str {
        match self {
            Self::UnknownEndpoint | Self::MethodNotAllowed => "UNSUPPORTED",
            Self::UriTooLong { .. } | Self::RepositoryInvalid(_) => "NAME_INVALID",
            Self::RegistryMissing | Self::RegistryInvalid | Self::Filtered { .. } => "NAME_UNKNOWN",
            Self::DigestInvalid(_) => "DIGEST_INVALID",
            Self::TagInvalid(_) => "MANIFEST_INVALID",
            Self::Unauthorized | Self::Stranger(_) => "UNAUTHORIZED",
            Self::RangeInvalid { .. } => "SIZE_INVALID",
            Self::NotAManifest { .. } => "MANIFEST_UNKNOWN",
            Self::NotLocal { manifest, .. } | Self::Refused { manifest, .. } => {
                if *manifest {
                    "MANIFEST_UNKNOWN"
                } else {
                    "BLOB_UNKNOWN"
                }
            }
        }
    }

    const fn detail(&self) -> Option<Detail> {
        match self {
            Self::Refused { attempts, .. } => Some(Detail { attempts: *attempts }),
            Self::NotLocal { .. } => Some(Detail { attempts: 0 }),
            Self::UnknownEndpoint
            | Self::MethodNotAllowed
            | Self::UriTooLong { .. }
            | Self::RegistryMissing
            | Self::RegistryInvalid
            | Self::RepositoryInvalid(_)
            | Self::DigestInvalid(_)
            | Self::TagInvalid(_)
            | Self::Filtered { .. }
            | Self::Unauthorized
            | Self::Stranger(_)
            | Self::RangeInvalid { .. }
            | Self::NotAManifest { .. } => None,
        }
    }

    /// The whole response; HEAD gets the length of the body that GET would.
    pub(crate) fn into_response(self, method: &Method) -> Response {
        let error = Error { code: self.code(), detail: self.detail(), message: self.to_string() };
        let text = serde_json::to_string(&Errors { errors: [error] }).expect("plain structs are JSON");
        let length = HeaderValue::from(text.len());
        let body = if method == Method::HEAD { Body::empty() } else { Body::from(text) };
        let mut response = Response::new(body);
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, length);
        if self == Self::Unauthorized {
            let challenge = HeaderValue::from_static("Basic realm=\"spegel\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        } else if let Self::Stranger(_) = self {
            // RFC 9110, section 11.6.1, wants a scheme named.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Spegel-Signature"));
        } else if self == Self::MethodNotAllowed {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        } else if let Self::RangeInvalid { size } = self {
            let range = HeaderValue::try_from(format!("bytes */{size}")).expect("digits are visible ASCII");
            headers.insert(header::CONTENT_RANGE, range);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn refusal_is_byte_for_byte_that_of_the_go_implementation() {
        let error = OciError::Refused {
            identifier: "docker.io/library/alpine:3".into(),
            manifest: true,
            reason: RefuseReason::HoldersExhausted,
            attempts: 3,
        };
        let expected = concat!(
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","detail":{"attempts":3},"#,
            r#""message":"all request retries exhausted for docker.io/library/alpine:3"}]}"#
        );
        let response = error.clone().into_response(&Method::GET);
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, expected);
        let response = error.into_response(&Method::HEAD);
        assert_eq!(response.headers()[header::CONTENT_LENGTH], expected.len().to_string());
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    }

    #[test]
    fn each_refusal_says_why() {
        let reasons = [
            RefuseReason::NobodyHasIt,
            RefuseReason::HoldersExhausted,
            RefuseReason::LookupUnanswered,
            RefuseReason::DeadlineExceeded,
            RefuseReason::Overloaded,
            RefuseReason::ShuttingDown,
        ];
        let identifier = || "docker.io/library/alpine:3".to_owned();
        let refused =
            |reason| OciError::Refused { identifier: identifier(), manifest: true, reason, attempts: 0 };
        let messages = reasons.map(|reason| format!("{reason}: {}", refused(reason)));
        insta::assert_snapshot!(messages.join("\n"));
    }
}
