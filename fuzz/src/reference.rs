use std::{fmt::Display, str::FromStr};

use spegel_core::{
    PeerId,
    oci::{Digest, ImageName, Reference, Repository, Tag},
};

/// Names as containerd stores them and clients ask for them: what is accepted is spelled as it
/// was read, character for character, so that no two texts are one name.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    spelled_as_read::<Repository>(text);
    spelled_as_read::<Tag>(text);
    spelled_as_read::<Digest>(text);
    spelled_as_read::<Reference>(text);
    spelled_as_read::<PeerId>(text);
    if let Some(name) = spelled_as_read::<ImageName>(text) {
        let tagged = name.tagged_name();
        assert_eq!(tagged.is_some(), name.tag.is_some());
        if let Some(tagged) = tagged {
            let again: ImageName = tagged.parse().expect("a tagged name is a name");
            assert_eq!((again.tag, again.digest), (name.tag, None));
        }
    }
}

fn spelled_as_read<T: FromStr + Display>(text: &str) -> Option<T> {
    let value = text.parse::<T>().ok()?;
    assert_eq!(value.to_string(), text);
    Some(value)
}
