//! What lies in containerd's registry configuration, for the check. Only looks.

use std::{collections::BTreeMap, path::Path};

use spegel_core::check::HostsDir;

use super::{HOSTS_TOML, HostsTomlError, files, text};

/// The directories of registries; none where `root` does not exist.
///
/// # Errors
///
/// If `root` cannot be listed.
pub(crate) fn survey(root: &Path) -> Result<BTreeMap<String, HostsDir>, HostsTomlError> {
    let names = files::names(root)?;
    let places = names.into_iter().map(|name| (root.join(&name), name)).filter(|(place, _)| place.is_dir());
    Ok(places.map(|(place, name)| (name, look_into(&place))).collect())
}

fn look_into(place: &Path) -> HostsDir {
    let content = match files::read(&place.join(HOSTS_TOML)) {
        Ok(Some(content)) => content,
        Ok(None) => return HostsDir::Empty,
        Err(HostsTomlError::Io { source, .. }) => return HostsDir::Unreadable(source.to_string()),
        Err(error) => return HostsDir::Unreadable(error.to_string()),
    };
    match text::hosts(&content) {
        Ok(_) if text::is_ours(&content) => HostsDir::Ours(text::own_hosts(&content)),
        Ok(hosts) => HostsDir::Foreign(hosts),
        Err((line, cause)) => HostsDir::Unreadable(format!("line {line}: {cause}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn directories_are_told_by_what_they_hold() {
        let root = tempfile::tempdir().unwrap();
        let ours = "[host.'http://10.0.0.1:30020']\ncapabilities = ['pull', 'resolve']\ndial_timeout = '200ms'\n\
                    [host.'http://10.0.0.1:30020'.header]\nAuthorization = 'Basic eA=='\n\n\
                    [host.'http://10.0.0.1:30021']\ncapabilities = ['pull', 'resolve']\ndial_timeout = '200ms'\n\n\
                    [host.'https://kept.test']\ncapabilities = ['pull']\n";
        let cases = [
            (
                "_default",
                Some(ours),
                HostsDir::Ours(vec!["http://10.0.0.1:30020".into(), "http://10.0.0.1:30021".into()]),
            ),
            (
                "quay.io",
                Some("server = 'https://quay.io'\nhost.'https://zot.test'.skip_verify = true\n"),
                HostsDir::Foreign(vec!["https://zot.test".into()]),
            ),
            ("ghcr.io", Some("server = 'https://ghcr.io'\n"), HostsDir::Foreign(Vec::new())),
            ("empty.test", None, HostsDir::Empty),
            (
                "wrong.test",
                Some("\nserver ="),
                HostsDir::Unreadable("line 2: string values must be quoted, expected literal string".into()),
            ),
            ("odd.test", Some("host = 1\n"), HostsDir::Unreadable("line 1: host is not a table".into())),
        ];
        for (name, content, _) in &cases {
            fs::create_dir(root.path().join(name)).unwrap();
            if let Some(content) = content {
                fs::write(root.path().join(name).join(HOSTS_TOML), content).unwrap();
            }
        }
        fs::write(root.path().join("a-file"), "").unwrap();
        let expected: BTreeMap<String, HostsDir> =
            cases.into_iter().map(|(name, _, dir)| (name.to_owned(), dir)).collect();
        assert_eq!(survey(root.path()).unwrap(), expected);
        assert_eq!(survey(&root.path().join("nowhere")).unwrap(), BTreeMap::new());
    }
}
