//! How both sides of a session authenticate by certificate.
//!
//! # Contract
//! - The server's certificate is always verified by the authorities that the spec or the system names. What
//!   `verify-ca` leaves out is the host name, and then the authority is one that the spec names.
//! - Chain, validity, name and signature are verified by the functions of rustls, each by itself: that one of them is
//!   left out never depends on which of them fails first.
//! - A server's certificate that is itself the authority in the Secret is trusted like a key in `known_hosts`.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use crate::{
    api::Reason,
    runner::{Failure, clients::tls},
};

/// What the certificate of a server must be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verification {
    /// It is of a trusted authority, and for the host that is connected to.
    Full,
    /// It is of a trusted authority: a private one that signs for no one else.
    Authority,
}

impl Verification {
    /// The name that libpq and connection URLs have for it.
    pub(super) fn sslmode(self) -> &'static str {
        match self {
            Self::Full => "verify-full",
            Self::Authority => "verify-ca",
        }
    }
}

/// Certificates and keys of a connection, as PEM.
#[derive(Clone, Default)]
pub struct Pem {
    /// Certificates of the authorities to trust; those of the system when absent.
    pub authorities: Option<String>,
    /// With which the role authenticates itself.
    pub client: Option<ClientPem>,
}

/// A client certificate.
#[derive(Clone)]
pub struct ClientPem {
    /// It and those between it and its authority.
    pub certificate: String,
    /// Its private key, without a passphrase.
    pub key: String,
    /// The files that hold both, for programs that read them themselves.
    pub files: [PathBuf; 2],
}

/// How the server is authenticated, and this side to it.
pub(super) struct ServerTls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) verification: Verification,
    pub(super) private_authority: bool,
    /// Of certificate and key.
    pub(super) client_files: Option<[PathBuf; 2]>,
}

impl ServerTls {
    pub(super) fn new(verification: Verification, pem: &Pem) -> Result<Self, Failure> {
        let (mut roots, mut private) = (RootCertStore::empty(), Vec::new());
        match &pem.authorities {
            Some(text) => {
                for certificate in tls::authorities(text).map_err(untrusted)? {
                    roots
                        .add(certificate.clone())
                        .map_err(|e| untrusted(format!("holds an unusable certificate: {e}")))?;
                    private.push(certificate);
                }
            }
            None if verification == Verification::Authority => {
                return Err(Failure::new(
                    Reason::ConnectionInvalid,
                    "sslmode=verify-ca accepts any server with a certificate of a trusted authority, and the public \
                     authorities sign for everyone; next: set spec.database.connection.caSecretRef to the private \
                     authority of this server, or use sslmode=verify-full",
                ));
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(untrusted("is not given, and the system knows no authority".to_owned()));
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            ServerVerifier { roots, private, verification, algorithms: provider.signature_verification_algorithms };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new(Reason::Internal, format!("TLS cannot be set up: {e}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &pem.client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let (chain, key) = client.read()?;
                builder.with_client_auth_cert(chain, key).map_err(|e| unusable(&client.files[0], &e.to_string()))?
            }
        };
        Ok(Self {
            config: Arc::new(config),
            verification,
            private_authority: pem.authorities.is_some(),
            client_files: pem.client.as_ref().map(|client| client.files.clone()),
        })
    }
}

impl ClientPem {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Failure> {
        let [certificate, key] = &self.files;
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|e| unusable(certificate, &format!("it is no readable PEM: {e}")))?;
        if chain.is_empty() {
            return Err(unusable(certificate, "it holds no certificate"));
        }
        // The parser's error is not shown: nothing of a private key may come out.
        let read = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        let read = read.map_err(|_| unusable(key, "it holds no PEM of a private key without a passphrase"))?;
        Ok((chain, read))
    }
}

/// A file of the Secret, which has the name of its key.
fn unusable(file: &std::path::Path, why: &str) -> Failure {
    let key = file.file_name().unwrap_or_default().to_string_lossy();
    Failure::new(
        Reason::ConnectionInvalid,
        format!(
            "key {key} of the Secret of spec.database.connection.secretRef cannot be used: {why}; next: put the client \
             certificate and its private key into the Secret, as PEM and without a passphrase"
        ),
    )
}

fn untrusted(what: String) -> Failure {
    Failure::new(Reason::CertificateNotTrusted, format!("spec.database.connection.caSecretRef {what}"))
}

/// See the head of this file.
#[derive(Debug)]
struct ServerVerifier {
    roots: RootCertStore,
    /// The authorities of the spec; none if those of the system are trusted.
    private: Vec<CertificateDer<'static>>,
    verification: Verification,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms) {
            Ok(()) => {}
            // It is the very certificate of the Secret. That it also says that it is an authority, which has no kind of
            // its own, is no objection. One that has expired, or is for another purpose, is of another kind.
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if self.private.contains(end_entity) => {}
            Err(error) => return Err(error),
        }
        if self.verification == Verification::Full {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
