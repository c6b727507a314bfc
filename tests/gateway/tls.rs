//! TLS on both sides.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::*;

/// Writes `NAME.ca`, `NAME.crt` and `NAME.key`, the certificate being for `host`.
pub fn certificate(directory: &Path, name: &str, host: &str) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Of the same name as the certificate, it would read as that certificate itself.
    authority.distinguished_name.push(DnType::CommonName, "authority of the tests");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    for (kind, content) in [("ca", authority.pem()), ("crt", leaf.pem()), ("key", key.serialize_pem())] {
        std::fs::write(directory.join(format!("{name}.{kind}")), content).unwrap();
    }
}

/// A backend's TLS front: terminates TLS and passes bytes on to a simulator.
pub async fn tls_front(directory: &Path, name: &str, backend: std::net::SocketAddr) -> u16 {
    tls_front_with(directory, name, backend, &[]).await
}

/// The same, offering these protocols by ALPN.
pub async fn tls_front_with(directory: &Path, name: &str, backend: std::net::SocketAddr, alpn: &[&str]) -> u16 {
    let chain =
        CertificateDer::pem_file_iter(directory.join(format!("{name}.crt"))).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(directory.join(format!("{name}.key"))).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut outside = acceptor.accept(stream).await.ok()?;
                let mut inside = TcpStream::connect(backend).await.ok()?;
                copy_bidirectional(&mut outside, &mut inside).await.ok()
            });
        }
    });
    port
}

#[tokio::test]
async fn a_listener_offers_both_http_versions_by_alpn() {
    let directory = tempfile::tempdir().unwrap();
    certificate(directory.path(), "edge", "gateway.test");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.path().join("edge.ca")).unwrap()).unwrap();
    let backend = simulator(Kind::Llm).await;
    let setup =
        Gateway::setup().chat(&[&backend.url()]).listener("tls: {certificate_file: edge.crt, key_file: edge.key}");
    let gateway = setup.start_in(directory).await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    for (offered, chosen) in [(vec![&b"h2"[..], b"http/1.1"], &b"h2"[..]), (vec![b"http/1.1"], b"http/1.1")] {
        let mut config = ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
        config.alpn_protocols = offered.into_iter().map(<[u8]>::to_vec).collect();
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        let name = ServerName::try_from("gateway.test").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(chosen));
        if chosen == b"http/1.1" {
            stream
                .write_all(b"GET /v1/health/live HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text).await;
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        } else {
            let io = hyper_util::rt::TokioIo::new(stream);
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            let request = http::Request::post("https://gateway.test/v1/chat/completions")
                .header("authorization", format!("Bearer {KEY}"));
            let body = http_body_util::Full::new(bytes::Bytes::from(chat(false).to_string()));
            let answer = answer(sender.send_request(request.body(body).unwrap()).await.unwrap()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn backends_are_verified_by_their_own_authority_and_name() {
    let directory = tempfile::tempdir().unwrap();
    certificate(directory.path(), "backend", "nim.internal");
    certificate(directory.path(), "other", "nim.internal");
    let backend = simulator(Kind::Llm).await;
    let port = tls_front(directory.path(), "backend", backend.address()).await;
    let url = format!("https://127.0.0.1:{port}");
    let pool = |setup: Setup, name: &str, tls: &str| {
        setup.pool(name, "nim-llm", &format!("models: [{{id: {name}}}]\n{tls}"), &[&url])
    };
    let trusting =
        "tls: {ca_file: backend.ca, server_name: nim.internal}\nhealth: {interval_ms: 50, unhealthy_after: 1}";
    let mut setup = pool(Gateway::setup(), "good", trusting);
    let unprobed = "health: {enabled: false}";
    setup =
        pool(setup, "wrong-authority", &format!("tls: {{ca_file: other.ca, server_name: nim.internal}}\n{unprobed}"));
    setup =
        pool(setup, "wrong-name", &format!("tls: {{ca_file: backend.ca, server_name: other.internal}}\n{unprobed}"));
    setup = pool(setup, "system-authorities", unprobed);
    let gateway = setup.start_in(directory).await;
    until("a probe has succeeded", async || backend.seen().requests("/v1/health/ready") > 0).await;
    for (model, expected) in [
        ("good", ""),
        ("wrong-authority", "tls_failed"),
        ("wrong-name", "tls_failed"),
        ("system-authorities", "tls_failed"),
        ("good", ""),
    ] {
        let mut body = chat(false);
        body["model"] = model.into();
        let answer = gateway.post("/v1/chat/completions", &body).send().await;
        // The simulator knows other models; that it answered at all is what counts.
        let expected =
            if expected.is_empty() { ("inference_model_unknown", "inference-service") } else { (expected, "network") };
        assert_eq!(answer.fault(), expected, "{model}: {}", answer.text());
    }
}
