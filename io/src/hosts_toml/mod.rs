//! Tells containerd to ask this mirror first: writes `hosts.toml` for each mirrored registry into
//! containerd's registry configuration, and undoes that. Runs in the init container of each start
//! and in the job that cleans up; the mirror itself never comes here.
//!
//! What was there at first is kept in `_backup`, laid out as the Go implementation lays it out, so
//! that either can clean up after the other. Unlike there
//!
//! * containerd reads the directory all the while, so that each file is replaced in one step and
//!   what goes away goes last;
//! * what others put there later is theirs: only files that look like this program's (either
//!   implementation's) are replaced or removed, and a foreign file in the way moves to `_backup`;
//! * everything is read and checked before anything is changed.

mod auth;
mod files;
mod origin;
mod survey;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

pub use auth::{BASIC_AUTH_DIR, BasicAuth};
use origin::Origin;
pub(crate) use survey::survey;
/// The pure part of dealing with files of other hands, for the fuzzer.
#[doc(hidden)]
pub use text::{is_ours as is_ours_text, kept_hosts as kept_hosts_of};

/// Holds what was there before this program was.
const BACKUP: &str = "_backup";

/// Name of the file that containerd reads in a registry's directory.
const HOSTS_TOML: &str = "hosts.toml";

/// containerd's name for all registries without a directory of their own.
const WILDCARD: &str = "_default";

/// Begins the names of what is being put together; never the name of a registry.
const DRAFT: &str = ".spegel-";

/// The flags of `spegel configuration`.
#[derive(Clone, Debug)]
pub struct HostsTomlSettings {
    /// `--containerd-registry-config-path`
    pub config_path: PathBuf,
    /// `--mirrored-registries`: URLs, or `_default` or `*` for all others. Empty: all.
    pub mirrored_registries: Vec<String>,
    /// `--mirror-targets`
    pub mirror_targets: Vec<String>,
    /// `--resolve-tags`
    pub resolve_tags: bool,
    /// `--prepend-existing`
    pub prepend_existing: bool,
    /// What containerd must say of itself to the mirror.
    pub auth: Option<BasicAuth>,
}

/// Why containerd's configuration was not changed, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum HostsTomlError {
    /// The flags make no sense; nothing was changed.
    #[error("{}", problems.join("; "))]
    Settings {
        /// All that is wrong.
        problems: Vec<String>,
    },
    /// A file to be kept below ours is not TOML; nothing was changed.
    #[error(
        "{}:{line}: {cause}; correct or remove the file, or start without --prepend-existing. Nothing was changed",
        path.display()
    )]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        cause: String,
    },
    /// A file or directory cannot be used.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl HostsTomlError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// What the operator can do about it, where that is known.
fn advice(error: &io::Error) -> &'static str {
    use io::ErrorKind::{AlreadyExists, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let kind = error.kind();
    if matches!(kind, PermissionDenied | ReadOnlyFilesystem) {
        "; make it writable for this process"
    } else if matches!(kind, NotFound | NotADirectory | AlreadyExists) {
        "; is --containerd-registry-config-path the directory that is mounted from the node?"
    } else {
        ""
    }
}

/// Makes containerd ask the mirror first. Doing so again, with the same or other flags, is fine.
///
/// # Errors
///
/// Wrong flags and files that cannot be kept are found before anything is changed. After an error
/// of the file system, the next run continues.
pub fn configure(settings: &HostsTomlSettings) -> Result<(), HostsTomlError> {
    let mirrored = mirrored(&settings.mirrored_registries)?;
    let targets = targets(settings)?;
    let root = settings.config_path.as_path();
    let backup = root.join(BACKUP);
    let first = !files::exists(&backup)?;

    let mut texts = BTreeMap::new();
    for (name, registry) in &mirrored {
        let kept = if settings.prepend_existing { kept_hosts(root, name, &targets)? } else { String::new() };
        let text = text::render(registry.as_ref(), &targets, settings.resolve_tags, settings.auth.as_ref());
        texts.insert(name.as_str(), if kept.is_empty() { text } else { format!("{text}\n\n{kept}") });
    }

    let mut others = Vec::new();
    for name in files::names(root)? {
        if name != BACKUP && !name.starts_with(DRAFT) && !texts.contains_key(name.as_str()) {
            let is_ours = ours(&root.join(&name))?;
            others.push((name, is_ours));
        }
    }

    files::create_dir(root)?;
    remove_drafts(root)?;
    // From here on the next run is no first one: what is in its way was put there later.
    files::create_dir(&backup)?;
    for (name, text) in &texts {
        // A foreign file in the way is kept before it is replaced.
        let place = root.join(name);
        if place.is_symlink() {
            // Written through, the link would change a file that is not containerd's.
            files::rename(&place, &backup.join(name))?;
        } else if foreign(&place)? {
            files::copy_over(&place, &backup.join(name))?;
        }
        write(root, name, text)?;
        tidy(&place, &backup.join(name), settings.prepend_existing)?;
    }
    for (name, is_ours) in others {
        if is_ours {
            remove_ours(root, &name)?;
        } else if first {
            files::rename(&root.join(&name), &backup.join(&name))?;
        }
    }
    Ok(())
}

/// Undoes [`configure`], whichever implementation did it. Doing so again is fine.
///
/// # Errors
///
/// After an error of the file system, the next run continues.
pub fn restore(config_path: &Path) -> Result<(), HostsTomlError> {
    let backup = config_path.join(BACKUP);
    if !files::exists(&backup)? {
        return Ok(());
    }
    remove_drafts(config_path)?;
    for name in files::names(&backup)? {
        put_back(&backup.join(&name), &config_path.join(&name))?;
    }
    for name in files::names(config_path)? {
        if name != BACKUP && ours(&config_path.join(&name))? {
            remove_ours(config_path, &name)?;
        }
    }
    files::remove_all(&backup)
}

/// The names of the directories that [`configure`] writes for these registries.
///
/// # Errors
///
/// If one is no registry.
pub(crate) fn directories(mirrored_registries: &[String]) -> Result<Vec<String>, HostsTomlError> {
    Ok(mirrored(mirrored_registries)?.into_keys().collect())
}

/// The registries by the names of their directories; `None` is all others.
fn mirrored(registries: &[String]) -> Result<BTreeMap<String, Option<Origin>>, HostsTomlError> {
    let mut mirrored = BTreeMap::new();
    let mut problems = Vec::new();
    for text in registries {
        if text == WILDCARD || text == "*" {
            if mirrored.insert(WILDCARD.to_owned(), None).is_some() {
                problems.push(format!("--mirrored-registries: {text:?}: at most one wildcard is allowed"));
            }
            continue;
        }
        match Origin::parse(text) {
            Ok(origin) => drop(mirrored.insert(origin.host.clone(), Some(origin))),
            Err(cause) => problems.push(format!("--mirrored-registries: {text:?}: {cause}")),
        }
    }
    if !problems.is_empty() {
        return Err(HostsTomlError::Settings { problems });
    }
    if mirrored.is_empty() {
        mirrored.insert(WILDCARD.to_owned(), None);
    }
    Ok(mirrored)
}

fn targets(settings: &HostsTomlSettings) -> Result<Vec<Origin>, HostsTomlError> {
    let mut problems = Vec::new();
    if settings.mirror_targets.is_empty() {
        problems.push("--mirror-targets: at least one is needed".to_owned());
    }
    let mut targets = Vec::new();
    for text in &settings.mirror_targets {
        match Origin::parse(&origin::with_brackets(text)) {
            Ok(origin) => targets.push(origin),
            Err(cause) => problems.push(format!("--mirror-targets: {text:?}: {cause}")),
        }
    }
    if problems.is_empty() { Ok(targets) } else { Err(HostsTomlError::Settings { problems }) }
}

/// The hosts of a registry's own configuration, in our format; empty if there is none.
fn kept_hosts(root: &Path, name: &str, targets: &[Origin]) -> Result<String, HostsTomlError> {
    let place = root.join(name);
    let dir = if foreign(&place)? { place } else { root.join(BACKUP).join(name) };
    let path = dir.join(HOSTS_TOML);
    match files::read(&path)? {
        None => Ok(String::new()),
        Some(content) => {
            let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
            text::kept_hosts(&content, &targets).map_err(|(line, cause)| HostsTomlError::Parse {
                path,
                line,
                cause,
            })
        }
    }
}

/// Whether a registry's directory was written by this program.
fn ours(place: &Path) -> Result<bool, HostsTomlError> {
    if !place.is_dir() {
        return Ok(false);
    }
    Ok(files::read(&place.join(HOSTS_TOML))?.is_some_and(|content| text::is_ours(&content)))
}

/// Whether there is something that was not written by this program.
fn foreign(place: &Path) -> Result<bool, HostsTomlError> {
    Ok(files::exists(place)? && !ours(place)?)
}

/// Puts a registry's `hosts.toml` in place in one step.
fn write(root: &Path, name: &str, text: &str) -> Result<(), HostsTomlError> {
    let place = root.join(name);
    if place.is_dir() {
        return files::write(&place.join(HOSTS_TOML), text.as_bytes());
    }
    // A directory without its file would hide `_default` for a moment.
    let draft = root.join(format!("{DRAFT}{name}"));
    files::create_dir(&draft)?;
    files::write(&draft.join(HOSTS_TOML), text.as_bytes())?;
    if files::exists(&place)? {
        files::remove_file(&place)?;
    }
    files::rename(&draft, &place)
}

/// Brings what lies beside our `hosts.toml` in line with what lies beside the one in the backup:
/// copies of it if that is to be kept, none otherwise. What is in the backup no longer, or never
/// was, is somebody's who came later, and is left alone.
fn tidy(place: &Path, backup: &Path, keep: bool) -> Result<(), HostsTomlError> {
    if !backup.is_dir() {
        return Ok(());
    }
    for name in files::names(backup)? {
        let (kept, copy) = (backup.join(&name), place.join(&name));
        if name == HOSTS_TOML {
            continue;
        }
        if kept.is_dir() {
            if keep {
                files::create_dir(&copy)?;
            }
            tidy(&copy, &kept, keep)?;
            if !keep {
                files::remove_dir_if_empty(&copy)?;
            }
        } else if keep {
            if !files::exists(&copy)? || files::is_copy(&copy, &kept)? {
                files::copy(&kept, &copy)?;
            }
        } else if files::is_copy(&copy, &kept)? {
            files::remove_file(&copy)?;
        }
    }
    Ok(())
}

/// Removes what this program wrote for a registry that is mirrored no longer.
fn remove_ours(root: &Path, name: &str) -> Result<(), HostsTomlError> {
    let place = root.join(name);
    tidy(&place, &root.join(BACKUP).join(name), false)?;
    let alone = files::names(&place)?.iter().all(|name| name == HOSTS_TOML);
    if alone {
        let draft = root.join(format!("{DRAFT}{name}"));
        files::rename(&place, &draft)?;
        return files::remove_all(&draft);
    }
    files::remove_file(&place.join(HOSTS_TOML))
}

/// Moves a file or directory of the backup to where it was. Ours, and copies made of it, are
/// replaced; what somebody put there later stays, for it says what is wanted there since then.
fn put_back(kept: &Path, place: &Path) -> Result<(), HostsTomlError> {
    if kept.is_symlink() && !place.is_symlink() && ours(place)? {
        files::remove_all(place)?;
    }
    if !files::exists(place)? {
        return files::rename(kept, place);
    }
    if !kept.is_symlink() && kept.is_dir() && place.is_dir() {
        for name in files::names(kept)? {
            put_back(&kept.join(&name), &place.join(&name))?;
        }
        return Ok(());
    }
    let is_hosts_toml = place.file_name().is_some_and(|name| name == HOSTS_TOML);
    let replaceable = (is_hosts_toml && files::read(place)?.is_some_and(|content| text::is_ours(&content)))
        || files::is_copy(place, kept)?;
    if replaceable {
        return files::rename(kept, place);
    }
    tracing::warn!(path = %place.display(), "changed since the backup was made; kept as it is");
    Ok(())
}

fn remove_drafts(root: &Path) -> Result<(), HostsTomlError> {
    let drafts: BTreeSet<String> =
        files::names(root)?.into_iter().filter(|name| name.starts_with(DRAFT)).collect();
    drafts.iter().try_for_each(|name| files::remove_all(&root.join(name)))
}
