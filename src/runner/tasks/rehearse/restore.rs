//! `pg_restore` into a copy, with owners and grants: its server has the roles. What the role may not restore is
//! left out. A server that does not know each setting of `pg_restore` gets its script by `psql`.

use std::path::Path;

use tokio_postgres::Client;

use crate::{
    api::LeftOutObjects,
    runner::{
        Failure,
        clients::{pg_tools::Running, private_folder::PrivateFolder},
        context::TaskContext,
        database::{
            connection::Target,
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

/// A `pg_restore` that waits for its archive on standard input.
pub(in crate::runner::tasks) struct Restore {
    /// The program.
    pub(in crate::runner::tasks) running: Running,
    /// What is to be done when it has ended.
    pub(in crate::runner::tasks) rest: Rest,
    /// Holds a file that the program reads.
    pub(in crate::runner::tasks) _folder: PrivateFolder,
}

/// What `pg_restore` leaves to be done.
pub(in crate::runner::tasks) struct Rest {
    facts: Facts,
    copy: Target,
}

impl Restore {
    /// Starts the program. `list` is the archive's table of contents; empty if it is not known.
    ///
    /// # Errors
    /// `DumpFailed` if it cannot be started; `PrivilegeMissing` if the role may not restore what the migration needs;
    /// those of a database error.
    pub(in crate::runner::tasks) async fn start(
        context: &TaskContext<'_>,
        original: &Client,
        copy: &Target,
        list: &str,
    ) -> Result<Self, Failure> {
        let session = copy.connect("rehearsal-copy").await?;
        let server = ServerVersion::of(&session).await?;
        let refused = left_out::refused_extensions(original, &session).await?;
        let facts = Facts::read(original, &context.control_spec().protected, &refused).await?;
        facts.require_restorable(copy.user())?;
        let folder = PrivateFolder::make(&[Path::new("/dev/shm"), &std::env::temp_dir()])?;
        let name = copy.database().replace('\\', "\\\\").replace('\'', "\\'");
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
            let list = folder.write("list", &contents::without(list, &facts))?;
            arguments.push(format!("--use-list={list}"));
        }
        let env = copy.libpq_env(context.settings.copy_ca_file().as_deref());
        let tools = &context.tools;
        let running = if server.knows_settings_of_restore() {
            arguments.extend([database, "--exit-on-error".to_owned(), "--no-password".to_owned()]);
            tools.start("pg_restore", &arguments, &env)?
        } else {
            arguments.push("--file=-".to_owned());
            let psql = [&database, "--file=-"].into_iter().chain(PSQL_OPTIONS).map(str::to_owned).collect::<Vec<_>>();
            let restore = tools.start("pg_restore", &arguments, &[])?;
            restore.piped_into(tools.start("psql", &psql, &env)?, UNKNOWN_SETTING)
        };
        Ok(Self { running, rest: Rest { facts, copy: copy.clone() }, _folder: folder })
    }
}

impl Rest {
    /// What is done when the program has ended: owners get what is theirs. Returns what the copy goes without.
    ///
    /// # Errors
    /// That of the program, with what the copy lacks; those of the connection.
    pub(in crate::runner::tasks) async fn done(self, ended: Result<(), Failure>) -> Result<LeftOutObjects, Failure> {
        if let Err(failure) = ended {
            let Some(lacks) = self.facts.left_out(vec![]).summary() else { return Err(failure) };
            let message = format!(
                "{}; {lacks}; next: if what failed needs one of these, mark its extension as trusted (trusted = true \
                    in its control file on the server), or give it to a role that {} is a member of",
                failure.message,
                self.copy.user()
            );
            return Err(Failure::new(failure.reason, message));
        }
        let kept = self.facts.give(&self.copy.connect("rehearsal-copy").await?).await?;
        let left_out = self.facts.left_out(kept);
        if let Some(summary) = left_out.summary() {
            tracing::warn!(detail = summary, "the role may not restore all of it");
        }
        Ok(left_out)
    }
}
