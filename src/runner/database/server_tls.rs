//! How a session's server is authenticated.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use crate::{
    api::Reason,
    runner::{Failure, clients::tls},
};

/// How the server is authenticated.
pub(super) struct ServerTls {
    pub(super) client: Arc<ClientConfig>,
    pub(super) private_authority: bool,
}

impl ServerTls {
    pub(super) fn new(ca_pem: Option<&str>) -> Result<Self, Failure> {
        let mut roots = RootCertStore::empty();
        match ca_pem {
            Some(pem) => {
                for certificate in tls::authorities(pem).map_err(untrusted)? {
                    roots.add(certificate).map_err(|e| untrusted(format!("holds an unusable certificate: {e}")))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(untrusted("is not given, and the system knows no authority".to_owned()));
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new(Reason::Internal, format!("TLS cannot be set up: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { client: Arc::new(client), private_authority: ca_pem.is_some() })
    }
}

fn untrusted(what: String) -> Failure {
    Failure::new(Reason::CertificateNotTrusted, format!("spec.database.connection.caSecretRef {what}"))
}
