//! The text form of every SHA-256: `sha256:` and 64 hex digits.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    digest_text(Sha256::new_with_prefix(bytes))
}

/// Text form of a hash that has taken all of its input, as [`sha256`] has it.
pub fn digest_text(hash: Sha256) -> String {
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
