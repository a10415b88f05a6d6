//! A folder that only this user may read, for what programs read from files.

use std::{
    fs::{DirBuilder, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{api::Reason, runner::Failure};

/// A folder of this user alone, removed when dropped.
pub(in crate::runner) struct PrivateFolder(PathBuf);

impl PrivateFolder {
    /// In the first of `places` that takes one.
    pub(in crate::runner) fn make(places: &[&Path]) -> Result<Self, Failure> {
        let mut problem = String::new();
        for place in places {
            let path = place.join(format!("code-{}-{:x}", std::process::id(), RandomState::new().hash_one(0)));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) => problem = format!("no folder can be made in {}: {error}", place.display()),
            }
        }
        Err(Failure::new(Reason::Internal, problem))
    }

    /// Where it is.
    pub(in crate::runner) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file that no other user may read; its path.
    pub(in crate::runner) fn write(&self, name: &str, text: &str) -> Result<String, Failure> {
        let path = self.0.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| Failure::new(Reason::Internal, format!("{} cannot be written: {e}", path.display())))?;
        Ok(path.to_string_lossy().into_owned())
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
