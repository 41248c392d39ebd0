//! The Ed25519 key that names this node, kept in `<data-dir>/private.key`. Reads and writes that
//! one file and knows nothing of what the key is used for; the program calls it once at start.
//!
//! The file is PEM `PRIVATE KEY`, PKCS#8 version 1, with the 32-byte seed inside: what Go's
//! `x509.MarshalPKCS8PrivateKey` makes and its `x509.ParsePKCS8PrivateKey` reads. A node keeps its
//! peer ID when one implementation takes over from the other, in either direction, so version 2
//! (which adds the public key, and which Go refuses) is read but never written.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ed25519_dalek::{
    SigningKey,
    pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes, spki::der::pem::LineEnding},
};
use libp2p::identity::Keypair;
use spegel_core::PeerId;

/// Name of the key's file in the data directory.
const FILE_NAME: &str = "private.key";

/// Most bytes of a key file read. A PKCS#8 Ed25519 key has some 120; a larger file is not one, and
/// a smaller bound would refuse a file with text around the PEM block, which Go accepts.
const FILE_SIZE_MAX_BYTES: u64 = 16 * 1024;

/// Who this node is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The key, as libp2p wants it.
    pub keypair: Keypair,
    /// The name other nodes know it by.
    pub peer: PeerId,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file is there but is no Ed25519 key.
    #[error(
        "{} is not an Ed25519 private key ({cause}): restore it, or delete it to give this node a new identity",
        path.display()
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The file or its directory cannot be read or written.
    #[error(
        "cannot {action} {}: {source}; check the volume mounted for --data-dir, or leave --data-dir empty for an identity that changes with each start",
        path.display()
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Identity {
    /// Loads the identity of `data_dir`, making one if there is none. An empty path gives an
    /// identity that is never written down.
    ///
    /// # Errors
    ///
    /// When the directory cannot be used, or holds something that is not an Ed25519 key. Such a
    /// file is never replaced: it may be all that is left of an identity somebody relies on.
    pub fn load(data_dir: &Path) -> Result<Self, IdentityError> {
        if data_dir.as_os_str().is_empty() {
            return Ok(Self::from_seed(new_seed()));
        }
        let path = data_dir.join(FILE_NAME);
        if let Some(seed) = read(&path)? {
            return Ok(Self::from_seed(seed));
        }
        let made = new_seed();
        // Another process may win the race for the file; then its key is everybody's.
        if write(data_dir, &path, &made)? {
            return Ok(Self::from_seed(made));
        }
        match read(&path)? {
            Some(seed) => Ok(Self::from_seed(seed)),
            None => Err(IdentityError::Io { action: "read", path, source: io::ErrorKind::NotFound.into() }),
        }
    }

    fn from_seed(mut seed: [u8; 32]) -> Self {
        let peer = PeerId::from_public_key(SigningKey::from_bytes(&seed).verifying_key().to_bytes());
        let keypair =
            Keypair::ed25519_from_bytes(&mut seed).expect("any 32 bytes are the seed of an Ed25519 key");
        Self { keypair, peer }
    }
}

fn new_seed() -> [u8; 32] {
    let keypair = libp2p::identity::ed25519::Keypair::generate();
    keypair.secret().as_ref().try_into().expect("the seed of an Ed25519 key has 32 bytes")
}

/// Reads the seed; `None` if there is no file.
fn read(path: &Path) -> Result<Option<[u8; 32]>, IdentityError> {
    let io_error = |source| IdentityError::Io { action: "read", path: path.to_owned(), source };
    let invalid = |cause: String| IdentityError::Invalid { path: path.to_owned(), cause };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, FILE_SIZE_MAX_BYTES + 1), &mut bytes)
        .map_err(io_error)?;
    if bytes.is_empty() {
        return Err(invalid("the file is empty".into()));
    }
    if bytes.len() as u64 > FILE_SIZE_MAX_BYTES {
        return Err(invalid("the file is too large".into()));
    }
    let text = String::from_utf8(bytes).map_err(|_| invalid("the file is not PEM text".into()))?;
    let begin = text.find("-----BEGIN ").ok_or_else(|| invalid("the file is not PEM text".into()))?;
    // Like Go, pass over what stands before and after the block.
    let block = &text[begin..];
    let end = block.find("-----END ").and_then(|at| block[at..].find('\n').map(|line| at + line));
    let block = end.map_or(block, |end| &block[..end]);
    if !block.starts_with("-----BEGIN PRIVATE KEY-----") {
        return Err(invalid("expected a PEM block of type PRIVATE KEY".into()));
    }
    SigningKey::from_pkcs8_pem(block)
        .map(|key| Some(key.to_bytes()))
        .map_err(|error| invalid(format!("expected PKCS#8 of an Ed25519 key: {error}")))
}

/// Writes the seed to a file that appears whole or not at all; false if one was there first.
fn write(data_dir: &Path, path: &Path, seed: &[u8; 32]) -> Result<bool, IdentityError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::Io { action, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(data_dir).map_err(failed("create", data_dir))?;
    let pem = KeypairBytes { secret_key: *seed, public_key: None }
        .to_pkcs8_pem(LineEnding::LF)
        .expect("an Ed25519 key always has a PKCS#8 encoding");

    // Two processes that start at once write under different names: the key's own.
    let public = SigningKey::from_bytes(seed).verifying_key().to_bytes();
    let name =
        format!(".{FILE_NAME}.{:08x}", u32::from_be_bytes([public[0], public[1], public[2], public[3]]));
    let draft = data_dir.join(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(failed("create", &draft))?;
    file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write", &draft))?;

    // A link, unlike a rename, does not replace what is there. File systems without links get the
    // rename: there two processes racing for one directory is not a thing that happens.
    let linked = fs::hard_link(&draft, path);
    let written = match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(_) => return fs::rename(&draft, path).map(|()| true).map_err(failed("write", path)),
    };
    fs::remove_file(&draft).map_err(failed("remove", &draft))?;
    // The directory's entry must outlive a power cut too; not all file systems can promise it.
    let _unsupported = fs::File::open(data_dir).and_then(|dir| dir.sync_all());
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Made by Go 1.26: `pem.EncodeToMemory(PRIVATE KEY, x509.MarshalPKCS8PrivateKey(key))` with
    /// `key = ed25519.NewKeyFromSeed(0x00 0x01 … 0x1f)`.
    const GO_FILE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n\
        -----END PRIVATE KEY-----\n";

    fn seed() -> [u8; 32] {
        std::array::from_fn(|at| u8::try_from(at).unwrap())
    }

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn missing_key_is_made_once_and_kept() {
        let dir = dir();
        let data_dir = dir.path().join("a/b");
        let first = Identity::load(&data_dir).unwrap();
        let second = Identity::load(&data_dir).unwrap();
        assert_eq!(first.peer, second.peer);
        assert_eq!(first.keypair.public().to_peer_id().to_bytes(), first.peer.to_multihash());
        assert_eq!(fs::metadata(data_dir.join("private.key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&data_dir).unwrap().count(), 1, "no draft is left behind");
    }

    #[test]
    fn key_written_by_go_is_loaded() {
        let dir = dir();
        fs::write(dir.path().join("private.key"), GO_FILE).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap().peer, Identity::from_seed(seed()).peer);
    }

    #[test]
    fn key_written_here_is_the_bytes_that_go_writes() {
        let dir = dir();
        assert!(write(dir.path(), &dir.path().join("private.key"), &seed()).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("private.key")).unwrap(), GO_FILE);
    }

    #[test]
    fn text_around_the_block_is_passed_over() {
        let dir = dir();
        fs::write(dir.path().join("private.key"), format!("node key\n{GO_FILE}\nthe end\n")).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap().peer, Identity::from_seed(seed()).peer);
    }

    #[test]
    fn racing_writer_loses_to_the_file_that_is_there() {
        let dir = dir();
        let path = dir.path().join("private.key");
        fs::write(&path, GO_FILE).unwrap();
        assert!(!write(dir.path(), &path, &[9; 32]).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), GO_FILE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_data_dir_gives_another_identity_each_time() {
        let one = Identity::load(Path::new("")).unwrap();
        let other = Identity::load(Path::new("")).unwrap();
        assert_ne!(one.peer, other.peer);
    }

    #[test]
    fn invalid_file_is_explained_in_one_line_and_left_alone() {
        let dir = dir();
        let path = dir.path().join("private.key");
        let cut = &GO_FILE[..60];
        let rsa = GO_FILE.replace("PRIVATE KEY", "RSA PRIVATE KEY");
        let huge = "x".repeat(20_000);
        for content in ["", "garbage", "-----BEGIN PRIVATE KEY-----", cut, &rsa, &huge] {
            fs::write(&path, content).unwrap();
            let message = Identity::load(dir.path()).unwrap_err().to_string();
            assert!(message.contains("private.key"), "{message}");
            assert!(message.contains("delete it"), "{message}");
            assert!(!message.contains('\n'), "{message}");
            assert_eq!(fs::read_to_string(&path).unwrap(), *content);
        }
    }

    #[test]
    fn unusable_data_dir_names_the_flag() {
        let dir = dir();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let message = Identity::load(&file.join("data")).unwrap_err().to_string();
        assert!(message.contains("--data-dir"), "{message}");
    }
}
