//! The user name and password that containerd gives to the mirror, as Kubernetes mounts a Secret.

use std::{fmt, io, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use spegel_core::{CLIENT_USERNAME, ClusterSecrets};

use super::{HostsTomlError, files};

/// Where the chart mounts the Secret.
pub const BASIC_AUTH_DIR: &str = "/etc/secrets/basic-auth";

/// A user name and password, as bytes: HTTP sets no encoding for them.
#[derive(Clone, PartialEq, Eq)]
pub struct BasicAuth {
    /// The user name.
    pub username: Vec<u8>,
    /// The password.
    pub password: Vec<u8>,
}

impl BasicAuth {
    /// Reads `username` and `password` of a directory; `None` if there is neither.
    ///
    /// One newline at the end of a file is not part of the secret: editors and `echo` put it there,
    /// and no client could type it. Nothing else is trimmed.
    ///
    /// # Errors
    ///
    /// When a file is there but cannot be read, or the user name cannot be used.
    pub fn read(dir: &Path) -> Result<Option<Self>, HostsTomlError> {
        let file = |name: &str| {
            Ok(files::read(&dir.join(name))?.map(|mut content| {
                if content.last() == Some(&b'\n') {
                    content.pop();
                }
                content
            }))
        };
        match (file("username")?, file("password")?) {
            (None, None) => Ok(None),
            (username, password) => {
                let auth =
                    Self { username: username.unwrap_or_default(), password: password.unwrap_or_default() };
                // RFC 7617, section 2: the first colon ends the user name.
                if auth.username.contains(&b':') {
                    let path = dir.join("username");
                    return Err(HostsTomlError::io("use a user name with a colon in", &path)(
                        io::ErrorKind::InvalidData.into(),
                    ));
                }
                Ok(Some(auth))
            }
        }
    }

    /// What containerd shows where the cluster has a secret and the operator chose nothing else. The
    /// first of several secrets is used; mirrors accept what is made of any of them.
    #[must_use]
    pub fn of_cluster(secrets: &ClusterSecrets) -> Option<Self> {
        let password = secrets.client_passwords().next()?;
        Some(Self { username: CLIENT_USERNAME.into(), password: password.into() })
    }

    /// The value of the `Authorization` header.
    #[must_use]
    pub fn header(&self) -> String {
        let pair = [&self.username[..], b":", &self.password[..]].concat();
        format!("Basic {}", STANDARD.encode(pair))
    }
}

impl fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BasicAuth(…)")
    }
}
