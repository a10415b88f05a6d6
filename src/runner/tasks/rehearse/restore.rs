//! `pg_restore` into a copy, with owners and grants: the copy's server has the roles. What the role may not restore is
//! left out. A server that does not know each setting of `pg_restore` gets its script by `psql`.

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio_postgres::Client;

use crate::{
    api::LeftOutObjects,
    runner::{
        Failure,
        clients::{pg_tools::Running, private_folder::PrivateFolder},
        context::TaskContext,
        database::{
            connection::Target,
            control::NotOwned,
            left_out::{self, Facts, contents},
            version::ServerVersion,
        },
    },
};

/// What `pg_restore` sets first, and servers before 17 do not know.
const UNKNOWN_SETTING: &str = "SET transaction_timeout = 0;";
/// As `pg_restore` does by itself: end at the first error, ask for nothing. Errors come with their SQLSTATE.
const PSQL_OPTIONS: [&str; 6] = [
    "--set=ON_ERROR_STOP=1",
    "--set=VERBOSITY=verbose",
    "--no-psqlrc",
    "--no-password",
    "--quiet",
    "--output=/dev/null",
];

/// What all programs that restore into one copy have in common.
pub(in crate::runner::tasks) struct Restorer<'a> {
    context: &'a TaskContext<'a>,
    facts: Facts,
    server: ServerVersion,
    copy: Target,
    /// Holds the lists of contents that the programs read.
    folder: PrivateFolder,
    lists: AtomicU32,
}

/// In what a copy differs from its original.
pub(in crate::runner::tasks) struct Restored {
    /// What it goes without.
    pub(in crate::runner::tasks) left_out: LeftOutObjects,
    /// What the migration role owns there alone.
    pub(in crate::runner::tasks) not_owned: NotOwned,
}

impl<'a> Restorer<'a> {
    /// Reads from the original what the copy goes without.
    ///
    /// # Errors
    /// `PrivilegeMissing` if the role may not restore what the migration needs; those of a database error.
    pub(in crate::runner::tasks) async fn new(
        context: &'a TaskContext<'a>,
        original: &Client,
        copy: &Target,
    ) -> Result<Self, Failure> {
        let session = copy.connect("rehearsal-copy").await?;
        let server = ServerVersion::of(&session).await?;
        let refused = left_out::refused_extensions(original, &session).await?;
        let facts = Facts::read(original, &context.control_spec().protected, &refused).await?;
        facts.require_restorable(copy.user())?;
        let folder = PrivateFolder::make(&[Path::new("/dev/shm"), &std::env::temp_dir()])?;
        Ok(Self { context, facts, server, copy: copy.clone(), folder, lists: AtomicU32::new(0) })
    }

    /// Whether one program may restore by several sessions: not by way of a script.
    pub(super) fn has_jobs(&self) -> bool {
        self.server.knows_settings_of_restore()
    }

    /// Starts a program that reads an archive from its standard input, or from the file that `more` arguments name.
    /// `list` is the archive's table of contents; empty if it is not known.
    ///
    /// # Errors
    /// `DumpFailed` if it cannot be started.
    pub(in crate::runner::tasks) fn start(&self, list: &str, more: &[String]) -> Result<Running, Failure> {
        let name = self.copy.database().replace('\\', "\\\\").replace('\'', "\\'");
        let database = format!("--dbname=dbname='{name}'");
        let mut arguments = vec![
            // A copy must neither feed replicas nor be fed.
            "--no-publications".to_owned(),
            "--no-subscriptions".to_owned(),
            "--no-tablespaces".to_owned(),
            // Owners get what is theirs when all is there: one that the role may not become would end the program.
            "--no-owner".to_owned(),
            "--no-security-labels".to_owned(),
        ];
        if !list.is_empty() {
            let file = format!("list-{}", self.lists.fetch_add(1, Ordering::Relaxed));
            let list = self.folder.write(&file, &contents::without(list, &self.facts))?;
            arguments.push(format!("--use-list={list}"));
        }
        let env = self.copy.libpq_env(self.context.settings.copy_ca_file().as_deref());
        let tools = &self.context.tools;
        if self.server.knows_settings_of_restore() {
            arguments.extend([database, "--exit-on-error".to_owned(), "--no-password".to_owned()]);
            arguments.extend_from_slice(more);
            return tools.start("pg_restore", &arguments, &env);
        }
        arguments.push("--file=-".to_owned());
        arguments.extend_from_slice(more);
        let psql = [&database, "--file=-"].into_iter().chain(PSQL_OPTIONS).map(str::to_owned).collect::<Vec<_>>();
        let restore = tools.start("pg_restore", &arguments, &[])?;
        Ok(restore.piped_into(tools.start("psql", &psql, &env)?, UNKNOWN_SETTING))
    }

    /// The failure of a program, with what the copy lacks.
    pub(super) fn explain(&self, failure: &Failure) -> Failure {
        let lacks = self.facts.left_out(vec![]).summary().map_or_else(String::new, |lacks| {
            format!(
                "; {lacks}; next: if what failed needs one of these, mark its extension as trusted (trusted = true \
                    in its control file on the server), or give it to a role that {} is a member of",
                self.copy.user()
            )
        });
        Failure::new(failure.reason, format!("{}{lacks}", failure.message))
    }

    /// What is done when the last program has ended: owners get what is theirs.
    ///
    /// # Errors
    /// That of the program, with what the copy lacks; those of the connection.
    pub(in crate::runner::tasks) async fn done(self, ended: Result<(), Failure>) -> Result<Restored, Failure> {
        ended.map_err(|failure| self.explain(&failure))?;
        let session = self.copy.connect("rehearsal-copy").await?;
        let left_out = self.facts.left_out(self.facts.give(&session).await?);
        let not_owned = self.facts.not_owned(&session, self.copy.user()).await?;
        if let Some(summary) = left_out.summary() {
            tracing::warn!(detail = summary, "the role may not restore all of it");
        }
        Ok(Restored { left_out, not_owned })
    }
}
