//! Reads the file of secrets, and reads it again, so that they can be replaced without a restart.
//! Polls, because a mounted Secret changes by a symlink of a directory, a file in place, and either
//! may be on a file system that notifies nobody.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use spegel_core::{ClusterSecrets, SECRET_FILE_BYTES_MAX, SECRET_REREAD_INTERVAL, SecretError};
use tokio::{sync::watch, task::spawn_blocking, time};
use tracing::{info, warn};

use crate::metrics::Metrics;

/// Why there are no secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file cannot be read.
    #[error("cluster secret file {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds something else.
    #[error("cluster secret file {} cannot be used: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SecretError,
    },
}

/// Reads a file of secrets.
///
/// # Errors
///
/// When it cannot be read, or holds something else.
pub fn read(path: &Path) -> Result<ClusterSecrets, SecretFileError> {
    parse(path, &content(path)?)
}

/// Reads a file of secrets, and goes on reading it as long as anybody listens, saying in
/// `metrics` which secrets hold. What cannot be used changes nothing. Needs a tokio runtime around it.
///
/// # Errors
///
/// When it cannot be read at first, or holds something else.
pub fn watch(path: &Path, metrics: Metrics) -> Result<watch::Receiver<ClusterSecrets>, SecretFileError> {
    let (file, secrets) = SecretFile::open(path)?;
    let (sender, receiver) = watch::channel(secrets);
    metrics.set_cluster_secrets(&receiver.borrow());
    tokio::spawn(reread(file, sender, metrics));
    Ok(receiver)
}

async fn reread(mut file: SecretFile, secrets: watch::Sender<ClusterSecrets>, metrics: Metrics) {
    let mut complaint = None;
    loop {
        tokio::select! {
            () = secrets.closed() => return,
            () = time::sleep(SECRET_REREAD_INTERVAL) => {}
        }
        let looked = spawn_blocking(move || {
            let news = file.look();
            (file, news)
        });
        let Ok((looked, news)) = looked.await else { return };
        file = looked;
        match news {
            Ok(news) => {
                complaint = None;
                if let Some(news) = news {
                    let fingerprints: Vec<String> = news.fingerprints().collect();
                    info!(?fingerprints, "cluster secrets were replaced");
                    metrics.set_cluster_secrets(&news);
                    secrets.send_replace(news);
                }
            }
            Err(error) => {
                let error = error.to_string();
                if complaint.as_ref() != Some(&error) {
                    warn!(%error, "cluster secrets stay as they were");
                    complaint = Some(error);
                }
            }
        }
    }
}

/// A file, and what was last found in it that could be used.
struct SecretFile {
    path: PathBuf,
    text: Vec<u8>,
}

impl SecretFile {
    fn open(path: &Path) -> Result<(Self, ClusterSecrets), SecretFileError> {
        let text = content(path)?;
        let secrets = parse(path, &text)?;
        Ok((Self { path: path.to_owned(), text }, secrets))
    }

    /// What is in it, if that is something else than before.
    fn look(&mut self) -> Result<Option<ClusterSecrets>, SecretFileError> {
        let text = content(&self.path)?;
        if text == self.text {
            return Ok(None);
        }
        let secrets = parse(&self.path, &text)?;
        self.text = text;
        Ok(Some(secrets))
    }
}

/// At most one byte more than may be in it.
fn content(path: &Path) -> Result<Vec<u8>, SecretFileError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(SECRET_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut text))
        .map_err(|source| SecretFileError::Read { path: path.to_owned(), source })?;
    Ok(text)
}

fn parse(path: &Path, text: &[u8]) -> Result<ClusterSecrets, SecretFileError> {
    ClusterSecrets::parse(text).map_err(|source| SecretFileError::Content { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210";

    fn first_password(secrets: &ClusterSecrets) -> String {
        secrets.client_passwords().next().unwrap()
    }

    #[test]
    fn file_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let message =
            |path: &Path| read(path).unwrap_err().to_string().replace(&dir.path().display().to_string(), "");
        assert_eq!(
            message(&path),
            "cluster secret file /secret cannot be read: No such file or directory (os error 2)"
        );
        fs::write(&path, "short").unwrap();
        assert_eq!(
            message(&path),
            "cluster secret file /secret cannot be used: the secret in line 1 has 5 bytes, at least 32 are needed: \
             `openssl rand -hex 32` makes one"
        );
        fs::write(&path, "x".repeat(1_000_000)).unwrap();
        assert!(message(&path).contains("larger than 4096 bytes"), "{}", message(&path));
        assert!(message(dir.path()).contains("cannot be read: Is a directory"), "{}", message(dir.path()));
    }

    /// As the kubelet replaces what is mounted from a Secret.
    #[test]
    fn secret_behind_a_symlink_that_moves_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let put = |version: &str, text: &str| {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("secret"), text).unwrap();
            symlink(version, dir.path().join("..data_tmp")).unwrap();
            fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        };
        put("..1", A);
        let path = dir.path().join("secret");
        symlink("..data/secret", &path).unwrap();
        let (mut file, first) = SecretFile::open(&path).unwrap();
        assert!(file.look().unwrap().is_none(), "nothing has changed");
        put("..2", &format!("{B}\n{A}"));
        let both = file.look().unwrap().expect("something has changed");
        assert_ne!(first_password(&both), first_password(&first));
        assert!(both.client_passwords().any(|password| password == first_password(&first)));
        // What cannot be used, or is gone, changes nothing.
        fs::write(&path, "short").unwrap();
        assert!(matches!(file.look(), Err(SecretFileError::Content { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(file.look(), Err(SecretFileError::Read { .. })));
        symlink("..data/secret", &path).unwrap();
        put("..3", B);
        let second = file.look().unwrap().expect("something has changed");
        assert_eq!(second.client_passwords().count(), 1);
    }
}
