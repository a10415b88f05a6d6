//! A dump in several archives into a copy: all but rows, then the rows by several programs at the same time, then what
//! builds on rows, such as indexes, and then the grants: an owner may have taken from itself the right to write rows.
//!
//! Only the schema is in a file, which one program needs to restore by several sessions; rows are streamed.

use std::path::Path;

use futures::{StreamExt, TryStreamExt};

use super::{Restored, Restorer};
use crate::{
    api::Reason,
    runner::{
        Failure,
        clients::{
            archive,
            manifest::{Holds, Manifest, ManifestArchive},
            object_store::StoreClient,
            private_folder::PrivateFolder,
        },
        context::TaskContext,
        report::Meter,
    },
};

/// Restores the archives of a manifest.
///
/// # Errors
/// `BackupAltered`, `BackupUnreadable`, `DumpFailed`; those of the store.
pub(super) async fn restore(
    context: &TaskContext<'_>,
    store: &StoreClient,
    restorer: Restorer<'_>,
    object: &str,
    expected: &str,
    meter: &Meter,
) -> Result<Restored, Failure> {
    let manifest = Manifest::read(store, object, expected).await?;
    let total = manifest.archives.iter().map(|archive| archive.bytes).sum();
    let (schema, rows): (Vec<_>, Vec<_>) = manifest.archives.iter().partition(|a| a.holds == Holds::Schema);
    let [schema] = schema.as_slice() else {
        let message = format!("{object} names {} archives of the schema, limit 1", schema.len());
        return Err(Failure::new(Reason::BackupUnreadable, message));
    };
    let folder = PrivateFolder::make(&[&std::env::temp_dir(), Path::new("/dev/shm")])?;
    let file = folder.path().join("schema");
    archive::fetch(store, &Manifest::object_of(object, schema), &schema.sha256, &file).await?;
    let file = file.to_string_lossy().into_owned();
    let list = archive::list_file(&context.tools, &file).await?;

    let section = async |name: &str, jobs: u32| {
        let mut arguments = vec![format!("--section={name}"), "--no-acl".to_owned()];
        if jobs > 1 && restorer.has_jobs() {
            arguments.push(format!("--jobs={jobs}"));
        }
        arguments.push(file.clone());
        restorer.start(&list, &arguments)?.end().await.map_err(|failure| restorer.explain(&failure))
    };
    section("pre-data", 1).await?;
    let jobs = context.spec.plan.backup.jobs.max(1);
    let of_rows = async |archive: &ManifestArchive| {
        let object = Manifest::object_of(object, archive);
        let read = |read, _| meter.add_of(read, total);
        restore_rows(context, store, &restorer, (&object, &archive.sha256), read).await
    };
    let restored = futures::stream::iter(rows).map(of_rows).buffer_unordered(usize::try_from(jobs).unwrap_or(1));
    restored.try_collect::<Vec<()>>().await?;
    section("post-data", jobs).await?;
    let grants: String = list.lines().filter(|line| is_grant(line)).flat_map(|line| [line, "\n"]).collect();
    if !grants.is_empty() {
        restorer.start(&grants, std::slice::from_ref(&file))?.end().await.map_err(|f| restorer.explain(&f))?;
    }
    restorer.done(Ok(())).await
}

/// Whether a line of a table of contents is one of grants: `3456; 0 0 ACL public TABLE users shop`.
fn is_grant(line: &str) -> bool {
    let mut words = line.split_whitespace().skip(3);
    match words.next() {
        Some("DEFAULT") => words.next() == Some("ACL"),
        word => word == Some("ACL"),
    }
}

/// The rows of one archive.
async fn restore_rows(
    context: &TaskContext<'_>,
    store: &StoreClient,
    restorer: &Restorer<'_>,
    (object, expected): (&str, &str),
    read: impl FnMut(usize, u64),
) -> Result<(), Failure> {
    let list = archive::list_or_none(&context.tools, store, object).await?;
    let streamed = archive::stream_through(store, object, restorer.start(&list, &[])?, read).await?;
    // A cut object makes pg_restore fail, too; an altered object is the better explanation.
    archive::check_digest(object, &streamed, expected)?;
    streamed.ended.map_err(|failure| restorer.explain(&failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_known_by_their_kind() {
        for (line, grant) in [
            ("3456; 0 0 ACL public TABLE users shop", true),
            ("12; 826 16390 DEFAULT ACL public DEFAULT PRIVILEGES FOR TABLES shop", true),
            ("215; 1259 16386 TABLE public ACL shop", false),
            ("3300; 2604 16391 DEFAULT public users id shop", false),
            ("; Archive created at 2026-01-01", false),
            ("", false),
        ] {
            assert_eq!(is_grant(line), grant, "{line}");
        }
    }
}
