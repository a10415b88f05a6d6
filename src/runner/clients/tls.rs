//! What every client with TLS needs: authorities from PEM, and words for a refused certificate.

use std::error::Error;

use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};

/// The authorities of a PEM text, at least one.
///
/// # Errors
/// What is wrong with it: `holds ...`.
pub(in crate::runner) fn authorities(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut roots = RootCertStore::empty();
    let mut all = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| format!("holds no readable PEM: {e}"))?;
        roots.add(certificate.clone()).map_err(|e| format!("holds an unusable certificate: {e}"))?;
        all.push(certificate);
    }
    if all.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    Ok(all)
}

/// The first error of type `T` behind `error`. An `std::io::Error` hides what it wraps from `source`; some wrap another
/// one.
pub(in crate::runner) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = error.source();
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref::<T>() {
            return Some(found);
        }
        let wrapped = current.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(|| current.source());
    }
    None
}

/// Why TLS refused, if it was TLS. Without the names in the certificate and the one that was asked for.
pub(in crate::runner) fn refusal(error: &(dyn Error + 'static)) -> Option<String> {
    let rustls::Error::InvalidCertificate(why) = find::<rustls::Error>(error)? else {
        return find::<rustls::Error>(error).map(|other| format!("TLS failed: {other}"));
    };
    let why = match why {
        CertificateError::UnknownIssuer => "is of no trusted authority",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => "is for another host",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "is not valid yet",
        CertificateError::Revoked => "is revoked",
        _ => "is not accepted",
    };
    Some(format!("the certificate {why}"))
}
