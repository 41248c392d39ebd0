//! Decides what a person means who types the name of an image or content, as `docker pull` and the kubelet
//! read it: without a registry it is of Docker Hub, without a tag it is `latest`. What containerd stores is
//! fully qualified and is read by [`ImageName`] alone.

use std::str::FromStr;

use super::{Digest, ImageName, ReferenceError, Tag};
use crate::Key;

/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Where Docker Hub keeps images whose name has no slash.
const OFFICIAL: &str = "library";

/// The tag of names with neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// Something that a person looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sought {
    /// An image: its tag, or its manifest where there is a digest.
    Image(ImageName),
    /// Whatever has this digest.
    Content(Digest),
}

impl Sought {
    /// What it is known by in the cluster: the digest, or `registry/repository:tag`.
    #[must_use]
    pub fn identifier(&self) -> String {
        match self {
            Self::Content(digest) | Self::Image(ImageName { digest: Some(digest), .. }) => digest.to_string(),
            Self::Image(image) => image.tagged_name().unwrap_or_else(|| image.to_string()),
        }
    }

    /// Its key in the directory.
    #[must_use]
    pub fn key(&self) -> Key {
        Key::of(&self.identifier())
    }
}

impl FromStr for Sought {
    type Err = ReferenceError;

    /// Reads a digest, or the name of an image with or without registry, tag and digest.
    ///
    /// # Errors
    ///
    /// [`ReferenceError`] if it is neither.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let text = text.trim();
        if let Ok(digest) = text.parse() {
            return Ok(Self::Content(digest));
        }
        let is_host = |part: &str| {
            part.contains(['.', ':']) || part == "localhost" || part != part.to_ascii_lowercase()
        };
        let (registry, rest) = match text.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            Some(_) | None => (DEFAULT_REGISTRY, text),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let is_official =
            registry == DEFAULT_REGISTRY && !rest.split('@').next().is_some_and(|name| name.contains('/'));
        let name =
            if is_official { format!("{registry}/{OFFICIAL}/{rest}") } else { format!("{registry}/{rest}") };
        let mut image: ImageName = name.parse()?;
        if image.tag.is_none() && image.digest.is_none() {
            image.tag = Some(DEFAULT_TAG.parse::<Tag>()?);
        }
        Ok(Self::Image(image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn identifier(text: &str) -> Result<String, ReferenceError> {
        text.parse().map(|sought: Sought| sought.identifier())
    }

    #[test]
    fn names_are_completed_as_by_docker() {
        for (text, expected) in [
            ("nginx", "docker.io/library/nginx:latest"),
            (" nginx:1.27\n", "docker.io/library/nginx:1.27"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("docker.io/nginx:1", "docker.io/library/nginx:1"),
            ("index.docker.io/nginx:1", "docker.io/library/nginx:1"),
            ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
            ("localhost/a:1", "localhost/a:1"),
            ("registry:5000/a", "registry:5000/a:latest"),
            ("Registry/a", "Registry/a:latest"),
        ] {
            assert_eq!(identifier(text).as_deref(), Ok(expected), "{text}");
        }
        for text in [DIGEST.to_owned(), format!("nginx@{DIGEST}"), format!("ghcr.io/a/b:1@{DIGEST}")] {
            assert_eq!(identifier(&text).as_deref(), Ok(DIGEST), "{text}");
        }
        assert_eq!(DIGEST.parse().map(|sought: Sought| sought.key()), Ok(Key::of(DIGEST)));
    }

    #[test]
    fn what_can_be_no_name_is_an_error() {
        for text in ["", "/", "a b", "nginx:", "nginx@", "nginx@sha256:12", "NGINX", "docker.io/", "<script>"]
        {
            assert!(identifier(text).is_err(), "{text}");
        }
    }
}
