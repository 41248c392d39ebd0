//! What `--http-bootstrap-cert-dir` means: `ca.crt` names who may answer, `tls.crt` and `tls.key`
//! say who asks. Each file may be missing; the last two only together.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::ResolverError;

/// Where distributions keep the certificates that everybody trusts.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

pub(super) fn client_config(dir: &Path) -> Result<ClientConfig, ResolverError> {
    let invalid = |path: PathBuf, cause: String| ResolverError::Certificate { path, cause };
    let file = |name: &str| {
        let path = dir.join(name);
        if dir.as_os_str().is_empty() {
            return Ok((path, None));
        }
        match fs::read(&path) {
            Ok(content) => Ok((path, Some(content))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((path, None)),
            Err(error) => Err(invalid(path, format!("cannot be read: {error}"))),
        }
    };

    let mut roots = RootCertStore::empty();
    match file("ca.crt")? {
        (path, Some(pem)) => {
            let certificates = certificates(&pem).map_err(|cause| invalid(path.clone(), cause))?;
            for certificate in certificates {
                roots.add(certificate).map_err(|error| invalid(path.clone(), error.to_string()))?;
            }
        }
        (path, None) => {
            let system = SYSTEM_ROOTS.iter().find_map(|path| fs::read(path).ok());
            let Some(pem) = system else {
                let cause = "missing, and this system has no certificates to trust: add the file".into();
                return Err(invalid(path, cause));
            };
            // A bundle may hold certificates that rustls does not know how to use.
            roots.add_parsable_certificates(certificates(&pem).unwrap_or_default());
        }
    }

    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions of TLS")
        .with_root_certificates(roots);
    match (file("tls.crt")?, file("tls.key")?) {
        ((_, None), (_, None)) => Ok(builder.with_no_client_auth()),
        ((path, Some(certificate)), (key_path, Some(key))) => {
            let chain = certificates(&certificate).map_err(|cause| invalid(path.clone(), cause))?;
            let key = PrivateKeyDer::from_pem_slice(&key)
                .map_err(|_| invalid(key_path, "no PEM private key in it".into()))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| invalid(path, error.to_string()))
        }
        ((_, Some(_)), (path, None)) => {
            Err(invalid(path, "missing beside tls.crt: add it, or remove tls.crt".into()))
        }
        ((path, None), (_, Some(_))) => {
            Err(invalid(path, "missing beside tls.key: add it, or remove tls.key".into()))
        }
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) | Err(_) => Err("no PEM certificate in it".into()),
    }
}
