//! `pg_restore` into a copy, with owners and grants: the roles are the same server's. Extensions that the role may not
//! create are left out. A server that does not know each setting of `pg_restore` gets its script by `psql`.

use std::path::Path;

use super::extensions;
use crate::runner::{
    Failure,
    clients::{pg_tools::Running, private_folder::PrivateFolder},
    context::TaskContext,
    database::{connection::Target, version::ServerVersion},
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
    /// What to say of its failure.
    pub(in crate::runner::tasks) explain: LeftOut,
    /// Holds a file that the program reads.
    pub(in crate::runner::tasks) _folder: PrivateFolder,
}

/// Extensions that were left out.
pub(in crate::runner::tasks) struct LeftOut {
    extensions: Vec<String>,
    role: String,
}

impl Restore {
    /// Starts the program. `list` is the archive's table of contents; empty if it is not known.
    ///
    /// # Errors
    /// `DumpFailed` if it cannot be started; those of a database error.
    pub(in crate::runner::tasks) async fn start(
        context: &TaskContext<'_>,
        copy: &Target,
        list: &str,
    ) -> Result<Self, Failure> {
        let session = copy.connect("rehearsal-copy").await?;
        let left_out = extensions::refused(&session, list).await?;
        let server = ServerVersion::of(&session).await?;
        let folder = PrivateFolder::make(&[Path::new("/dev/shm"), &std::env::temp_dir()])?;
        let name = copy.database().replace('\\', "\\\\").replace('\'', "\\'");
        let database = format!("--dbname=dbname='{name}'");
        let mut arguments = vec![
            // A copy must neither feed replicas nor be fed.
            "--no-publications".to_owned(),
            "--no-subscriptions".to_owned(),
            "--no-tablespaces".to_owned(),
        ];
        if !left_out.is_empty() {
            tracing::warn!(
                extensions = left_out.join(", "),
                "the role may not create these extensions: the copy goes without"
            );
            let list = folder.write("list", &extensions::without(list, &left_out))?;
            arguments.push(format!("--use-list={list}"));
        }
        let env = copy.libpq_env(context.settings.database_ca_file().as_deref());
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
        let explain = LeftOut { extensions: left_out, role: copy.user().to_owned() };
        Ok(Self { running, explain, _folder: folder })
    }
}

impl LeftOut {
    /// A failure of the program, with what the copy lacks.
    pub(in crate::runner::tasks) fn of(&self, failure: Failure) -> Failure {
        if self.extensions.is_empty() {
            return failure;
        }
        let message = format!(
            "{}; role {} may not create {}, without which the copy was made; next: if what failed needs it, mark it as \
                trusted (trusted = true in its control file on the server)",
            failure.message,
            self.role,
            self.extensions.join(", ")
        );
        Failure::new(failure.reason, message)
    }
}
