//! PEM files, read to learn now whether they can be used.

use std::path::Path;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

pub(super) const ONE_CERTIFICATE: &str = "expected a PEM file with at least one certificate";

pub(super) fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).map(|all| all.filter_map(Result::ok).collect()).unwrap_or_default()
}

/// Whether a listener can serve with these files. Files that can not be read are another mistake.
pub(super) fn certified(certificate_file: &Path, key_file: &Path) -> Result<(), String> {
    if !certificate_file.exists() || !key_file.exists() {
        return Ok(());
    }
    let chain = certificates(certificate_file);
    if chain.is_empty() {
        return Err(format!("certificate_file: {ONE_CERTIFICATE}"));
    }
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|_| "key_file: expected a PEM file with a private key")?;
    let pair = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider());
    pair.map(drop).map_err(|e| format!("certificate_file and key_file can not be used together: {e}"))
}
