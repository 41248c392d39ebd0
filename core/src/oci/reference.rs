//! Decides what is a name: repositories, tags, references and the image names containerd
//! stores. Never looks anything up; whoever receives such text from containerd or over HTTP
//! calls it, and gets a value or a [`ReferenceError`] whatever the text.

use std::{fmt, str::FromStr};

use super::{Digest, DigestError};

/// Longest repository in bytes (OCI distribution-spec, "Pulling manifests": many clients bound
/// the name to 255 including the host). Shorter and legal names are refused; longer and a
/// peer can make us carry and log arbitrary amounts of text.
const REPOSITORY_BYTES_MAX: usize = 255;

/// Longest tag in bytes, as in the grammar of the distribution-spec.
const TAG_BYTES_MAX: usize = 128;

/// Longest registry (host and port) in bytes: the longest DNS name and a port fit. Shorter and
/// legal hosts are refused; longer only costs memory.
const REGISTRY_BYTES_MAX: usize = 261;

/// Why a text is not the name it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The image name has no `/`, so that its first part cannot be told to be a registry.
    #[error("image name has no registry: expected registry/repository[:tag][@digest]")]
    NoRegistry,
    /// The registry is too long, or has characters that no host has.
    #[error("image name's registry is not a host with an optional port")]
    InvalidRegistry,
    /// The repository does not follow the grammar of the distribution-spec.
    #[error("repository is not lower-case path components of at most 255 bytes")]
    InvalidRepository,
    /// The tag does not follow the grammar of the distribution-spec.
    #[error("tag is not 1 to 128 letters, digits, '_', '.' or '-', not starting with '.' or '-'")]
    InvalidTag,
    /// The digest is not one.
    #[error(transparent)]
    InvalidDigest(#[from] DigestError),
}

/// The name of a repository within a registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(String);

impl Repository {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let is_valid = text.len() <= REPOSITORY_BYTES_MAX && text.split('/').all(is_path_component);
        if is_valid { Ok(Self(text.to_owned())) } else { Err(ReferenceError::InvalidRepository) }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    // Separators are what is left between words; the first and last byte belong to words.
    bytes.first().is_some_and(is_word)
        && bytes.last().is_some_and(is_word)
        && bytes.split(is_word).filter(|separator| !separator.is_empty()).all(|separator| {
            matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
        })
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a version of an image within a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let bytes = text.as_bytes();
        let is_valid = bytes.len() <= TAG_BYTES_MAX
            && bytes.first().is_some_and(|byte| is_word(*byte))
            && bytes.iter().all(|byte| is_word(*byte) || matches!(byte, b'.' | b'-'));
        if is_valid { Ok(Self(text.to_owned())) } else { Err(ReferenceError::InvalidTag) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a manifest is asked for by (distribution-spec, `<reference>`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// By tag.
    Tag(Tag),
    /// By digest.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        // No tag has a colon and every digest has one.
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// The full name of an image as containerd has it: `registry[:port]/repository[:tag][@digest]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    /// Host and optional port, verbatim: the first component, whatever it looks like, because
    /// containerd stores names fully qualified.
    pub registry: String,
    /// The repository.
    pub repository: Repository,
    /// The tag, if there is one.
    pub tag: Option<Tag>,
    /// The digest, if there is one.
    pub digest: Option<Digest>,
}

impl ImageName {
    /// The canonical `registry/repository:tag`, if there is a tag.
    #[must_use]
    pub fn tagged_name(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}/{}:{tag}", self.registry, self.repository))
    }
}

impl FromStr for ImageName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (registry, rest) = text.split_once('/').ok_or(ReferenceError::NoRegistry)?;
        if registry.is_empty() {
            return Err(ReferenceError::NoRegistry);
        }
        // `[` and `]` are of IPv6 addresses, `_` of container networks' host names.
        let is_host = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']')
        };
        if registry.len() > REGISTRY_BYTES_MAX || !registry.bytes().all(is_host) {
            return Err(ReferenceError::InvalidRegistry);
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag.parse()?)),
            None => (rest, None),
        };
        Ok(Self { registry: registry.to_owned(), repository: repository.parse()?, tag, digest })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn repositories_follow_the_grammar() {
        for text in ["a", "library/nginx", "a.b/c_d/e__f/g-h/i---j", "0/1", &"a".repeat(255)] {
            assert_eq!(text.parse::<Repository>().map(|r| r.to_string()), Ok(text.to_owned()));
        }
        let refused = [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a.-b", "-a", "a-", "a_", "a b", "é", "a:b",
            "a@b", "../b", ".",
        ];
        for text in refused.into_iter().chain([&*"a".repeat(256)]) {
            assert_eq!(text.parse::<Repository>(), Err(ReferenceError::InvalidRepository), "{text}");
        }
    }

    #[test]
    fn tags_follow_the_grammar() {
        for text in ["a", "_", "latest", "V1.2-3_4", "0", &"a".repeat(128)] {
            assert_eq!(text.parse::<Tag>().map(|t| t.to_string()), Ok(text.to_owned()));
        }
        for text in ["", ".a", "-a", "a:b", "a/b", "a b", "é", "a@b", &"a".repeat(129)] {
            assert_eq!(text.parse::<Tag>(), Err(ReferenceError::InvalidTag), "{text}");
        }
    }

    #[test]
    fn a_reference_with_a_colon_is_a_digest() {
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        assert!(matches!(DIGEST.parse(), Ok(Reference::Digest(_))));
        assert!(matches!("sha256:00".parse::<Reference>(), Err(ReferenceError::InvalidDigest(_))));
        assert!(matches!(":".parse::<Reference>(), Err(ReferenceError::InvalidDigest(_))));
        assert_eq!("".parse::<Reference>(), Err(ReferenceError::InvalidTag));
    }

    #[test]
    fn image_names_round_trip() {
        let names = [
            "docker.io/library/nginx:1.27".to_owned(),
            "localhost:5000/a".to_owned(),
            "[::1]:5000/a/b:c".to_owned(),
            "library/foo:x".to_owned(),
            format!("r.test/a@{DIGEST}"),
            format!("r.test/a:b@{DIGEST}"),
        ];
        for name in names {
            assert_eq!(name.parse::<ImageName>().map(|n| n.to_string()), Ok(name));
        }
    }

    #[test]
    fn tagged_name_leaves_the_digest_out() {
        let tagged = |text: &str| text.parse::<ImageName>().expect("a name").tagged_name();
        assert_eq!(tagged(&format!("r.test:1/a:b@{DIGEST}")).as_deref(), Some("r.test:1/a:b"));
        assert_eq!(tagged(&format!("r.test/a@{DIGEST}")), None);
    }

    #[test]
    fn odd_image_names_are_errors() {
        let cases = [
            ("", ReferenceError::NoRegistry),
            ("nginx", ReferenceError::NoRegistry),
            ("/nginx", ReferenceError::NoRegistry),
            (DIGEST, ReferenceError::NoRegistry),
            ("r test/a", ReferenceError::InvalidRegistry),
            ("é/a", ReferenceError::InvalidRegistry),
            ("r.test/", ReferenceError::InvalidRepository),
            ("r.test/A", ReferenceError::InvalidRepository),
            ("r.test/a:", ReferenceError::InvalidTag),
            ("r.test/a:b:c", ReferenceError::InvalidTag),
            ("r.test/a@", ReferenceError::InvalidDigest(DigestError::NoAlgorithm)),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<ImageName>(), Err(error), "{text}");
        }
    }

    /// The whole grammar, with the parts as its groups.
    static IMAGE_NAME: LazyLock<regex::Regex> = LazyLock::new(|| {
        let component = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*";
        let grammar = format!(
            r"^([A-Za-z0-9._:\[\]-]+)/({component}(?:/{component})*)(?::(\w[\w.-]*))?(?:@(sha256:[0-9a-f]{{64}}))?$"
        );
        regex::Regex::new(&grammar).expect("a regex")
    });

    proptest! {
        #[test]
        fn whatever_parses_prints_the_same(text in "[a-c.:/@_-]{0,24}") {
            if let Ok(name) = text.parse::<ImageName>() {
                prop_assert_eq!(name.to_string(), text.clone());
            }
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }

        #[test]
        fn repositories_match_the_grammar_as_a_regex(text in "[a-c0._/-]{0,10}") {
            let component = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*";
            let grammar = regex::Regex::new(&format!("^{component}(?:/{component})*$")).expect("a regex");
            let repository = text.parse::<Repository>().ok();
            let matching = grammar.is_match(&text).then_some(text.as_str());
            prop_assert_eq!(repository.as_ref().map(Repository::as_str), matching);
        }

        #[test]
        fn image_names_match_the_grammar_as_a_regex(
            registry in "[a-cA._\\[\\]:-]{0,4}",
            repository in "/?[a-c0._/-]{0,6}",
            tag in "|:[a-cA0._-]{0,4}|:[a-c]:[a-c]",
            digest in prop_oneof![2 => Just(""), 1 => Just(DIGEST), 1 => Just("sha256:00"), 1 => Just("a")],
        ) {
            let at = if digest.is_empty() { "" } else { "@" };
            let text = format!("{registry}{repository}{tag}{at}{digest}");
            let read = text.parse::<ImageName>().ok().map(|name| {
                let (tag, digest) = (name.tag.map(|tag| tag.to_string()), name.digest.map(|digest| digest.to_string()));
                (name.registry, name.repository.to_string(), tag, digest)
            });
            let expected = IMAGE_NAME.captures(&text).map(|parts| {
                let part = |number| parts.get(number).map(|part| part.as_str().to_owned());
                (part(1).unwrap_or_default(), part(2).unwrap_or_default(), part(3), part(4))
            });
            prop_assert_eq!(read, expected, "{}", text);
        }
    }
}
