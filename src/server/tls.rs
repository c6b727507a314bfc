//! TLS of listeners.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use pingora_core::listeners::tls::TlsSettings;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;

use crate::proxy::settings::ListenerTls;

/// TLS 1.2 and 1.3 with HTTP/2 and HTTP/1.1 by ALPN.
pub(super) fn listener(settings: &ListenerTls) -> Result<TlsSettings> {
    let text = |path: &std::path::Path| path.to_str().map(str::to_owned).ok_or_else(|| anyhow!("{path:?} is not text"));
    let (certificate, key) = (text(&settings.certificate_file)?, text(&settings.key_file)?);
    let mut tls =
        TlsSettings::intermediate(&certificate, &key).with_context(|| format!("loading {certificate} and {key}"))?;
    tls.enable_h2();
    if let Some(path) = &settings.client_ca_file {
        let mut roots = RootCertStore::empty();
        let authorities = CertificateDer::pem_file_iter(path).with_context(|| format!("reading {}", path.display()))?;
        roots.add_parsable_certificates(authorities.filter_map(Result::ok));
        tls.set_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?);
    }
    Ok(tls)
}
