//! The few things done to files, each of which either happens or does not.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use super::{DRAFT, HostsTomlError};

/// Largest file read, in bytes. Configuration is far smaller; larger files are an accident that
/// should not take the init container's memory with it.
const SIZE_MAX: u64 = 4 * 1024 * 1024;

pub(super) fn exists(path: &Path) -> Result<bool, HostsTomlError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(HostsTomlError::io("look at", path)(error)),
    }
}

/// The content; `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, HostsTomlError> {
    let failed = HostsTomlError::io("read", path);
    match fs::metadata(path) {
        Ok(about) if about.is_file() && about.len() <= SIZE_MAX => fs::read(path).map(Some).map_err(failed),
        Ok(about) if about.is_file() => Err(failed(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => Ok(None),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// What a directory holds, in order; nothing if there is no such directory.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, HostsTomlError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(HostsTomlError::io("list", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(HostsTomlError::io("list", dir))?;
        let name = entry.file_name().into_string().map_err(|_| {
            HostsTomlError::io("use a name that is not UTF-8 in", dir)(io::ErrorKind::InvalidData.into())
        })?;
        names.push(name);
    }
    names.sort();
    Ok(names)
}

pub(super) fn create_dir(path: &Path) -> Result<(), HostsTomlError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(HostsTomlError::io("create", path))
}

/// Puts `content` at `path`, replacing what is there in one step.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), HostsTomlError> {
    write_as(path, content, fs::Permissions::from_mode(0o644))
}

fn write_as(path: &Path, content: &[u8], mode: fs::Permissions) -> Result<(), HostsTomlError> {
    if read(path)?.is_some_and(|there| there == content) {
        return Ok(());
    }
    let draft = draft_of(path);
    remove_file(&draft)?;
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode.mode() & 0o777)
        .open(&draft)
        .and_then(|mut file| {
            file.write_all(content)?;
            // Whatever the umask said.
            file.set_permissions(mode)?;
            file.sync_all()
        })
        .map_err(HostsTomlError::io("write", &draft))?;
    rename(&draft, path)
}

/// Copies a file with its permissions: some are the keys of clients.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), HostsTomlError> {
    let Some(content) = read(from)? else { return Ok(()) };
    let about = fs::metadata(from).map_err(HostsTomlError::io("look at", from))?;
    write_as(to, &content, about.permissions())
}

/// Copies a file, link or directory, replacing what is there file by file.
pub(super) fn copy_over(from: &Path, to: &Path) -> Result<(), HostsTomlError> {
    if from.is_symlink() {
        let draft = draft_of(to);
        remove_file(&draft)?;
        fs::read_link(from)
            .and_then(|target| symlink(target, &draft))
            .map_err(HostsTomlError::io("copy the link", from))?;
        return rename(&draft, to);
    }
    if !from.is_dir() {
        return copy(from, to);
    }
    create_dir(to)?;
    for name in names(from)? {
        copy_over(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn draft_of(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!("{DRAFT}{name}"))
}

/// Whether one file is a copy of the other, or several one after the other: the Go implementation
/// appends at each start.
pub(super) fn is_copy(copy: &Path, original: &Path) -> Result<bool, HostsTomlError> {
    let (Some(copy), Some(original)) = (read(copy)?, read(original)?) else { return Ok(false) };
    if original.is_empty() {
        return Ok(copy.is_empty());
    }
    Ok(!copy.is_empty() && copy.chunks(original.len()).all(|chunk| chunk == original))
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), HostsTomlError> {
    fs::rename(from, to).map_err(HostsTomlError::io("move into place", to))
}

pub(super) fn remove_file(path: &Path) -> Result<(), HostsTomlError> {
    match fs::remove_file(path) {
        Err(error) if !is_missing(&error) => Err(HostsTomlError::io("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn remove_dir_if_empty(path: &Path) -> Result<(), HostsTomlError> {
    if path.is_dir() && names(path)?.is_empty() {
        fs::remove_dir(path).map_err(HostsTomlError::io("remove", path))?;
    }
    Ok(())
}

pub(super) fn remove_all(path: &Path) -> Result<(), HostsTomlError> {
    let removed =
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if !is_missing(&error) => Err(HostsTomlError::io("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
