//! Why a task failed: one list for runner, machine, conditions and documentation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::sql;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident: $retry:ident,)+) => {
        /// Why a task failed. The name is what users see in conditions and events.
        #[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason, for documentation and tests.
            pub const ALL: &[Reason] = &[$(Reason::$name,)+];

            /// Its name, CamelCase.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)+ }
            }

            /// What a retry can do.
            pub fn retry(self) -> Retry {
                match self { $(Reason::$name => Retry::$retry,)+ }
            }
        }
    };
}

impl From<sql::ProblemKind> for Reason {
    fn from(kind: sql::ProblemKind) -> Self {
        match kind {
            sql::ProblemKind::SyntaxError => Reason::SqlSyntaxError,
            sql::ProblemKind::MetaCommand => Reason::SqlMetaCommand,
            sql::ProblemKind::TransactionControl => Reason::SqlTransactionControl,
            sql::ProblemKind::OutsideTransaction => Reason::SqlOutsideTransaction,
            sql::ProblemKind::OutsideDatabase => Reason::SqlOutsideDatabase,
        }
    }
}

/// What a retry of the same task can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The cause may go away by itself, or be fixed outside of the spec.
    May,
    /// The same inputs fail again: the SQL or the spec has to be changed.
    Never,
    /// The evidence is out of date: preparation starts again.
    Prepare,
}

impl Reason {
    /// Whether other sessions of the database, or a lack of its resources, caused the failure: it may pass in minutes.
    pub fn is_contention(self) -> bool {
        matches!(self, Reason::LockTimeout | Reason::DatabaseUnavailable)
    }
}

reasons! {
    /// A Secret or one of its keys is missing.
    SecretKeyMissing: May,
    /// A connection URL cannot be used as it stands.
    ConnectionInvalid: May,
    /// The database server cannot be reached.
    HostUnreachable: May,
    /// The server's certificate is not trusted.
    CertificateNotTrusted: May,
    /// Role or password were refused.
    AuthenticationFailed: May,
    /// The connection leads to another database than `database.name`.
    WrongDatabase: May,
    /// The server is newer than pg_dump.
    ServerTooNew: Never,
    /// The server is older than 13.
    ServerTooOld: Never,
    /// The role lacks a privilege.
    PrivilegeMissing: May,
    /// A role is missing.
    RoleMissing: May,
    /// A table is missing.
    TableMissing: May,
    /// A column is missing, or has a wrong type.
    ColumnMissing: May,
    /// The clocks of controller, runner and database differ by more than 2 s.
    ClockSkew: May,
    /// A publication for all tables publishes the operator's own, too.
    AllTablesPublished: May,
    /// Another migration owns the database.
    DatabaseInUse: May,
    /// The copy for the rehearsals would be a risk to the server of the original.
    CopyTooRisky: May,
    /// The server of the rehearsals' copy lacks an extension.
    ExtensionMissing: May,
    /// The scratch database of the rehearsal exists already and is not the operator's.
    ScratchDatabaseExists: May,
    /// The SQL differs from what the controller read.
    SqlChanged: May,
    /// The SQL cannot be parsed.
    SqlSyntaxError: Never,
    /// The SQL holds a psql command.
    SqlMetaCommand: Never,
    /// The SQL starts or ends transactions by itself.
    SqlTransactionControl: Never,
    /// A statement needs to run outside a transaction.
    SqlOutsideTransaction: Never,
    /// The SQL has an effect outside of the database.
    SqlOutsideDatabase: Never,
    /// A statement failed.
    SqlFailed: Never,
    /// A table of `tablesGone` is still there.
    TablesNotGone: Never,
    /// A table of `migration.park` cannot be moved away, or back.
    TableNotParked: Never,
    /// Something depends on a parked table, which cannot be dropped.
    ParkedTableInUse: May,
    /// Roles of the application lose rights by the up SQL, and no one has approved it.
    RightsLost: Never,
    /// Balances changed that nothing explains.
    BalancesUnexplained: Never,
    /// The bucket is missing.
    BucketMissing: May,
    /// The bucket refused access.
    BucketDenied: May,
    /// The store cannot be reached.
    StoreUnreachable: May,
    /// The object is not what was uploaded.
    BackupAltered: May,
    /// The archive cannot be read to its end.
    BackupUnreadable: May,
    /// pg_dump or pg_restore failed.
    DumpFailed: May,
    /// The rollback did not restore the old state.
    RollbackNotEqual: Never,
    /// A check cannot be measured on the migrated copy.
    CheckNotMeasurable: Never,
    /// The schema has changed since the rehearsal.
    SchemaDrifted: Prepare,
    /// `verifyUp` answered false, or nothing.
    VerifyUpFailed: Never,
    /// `verifyDown` answered false, or nothing.
    VerifyDownFailed: Never,
    /// An invariant of the spec does not hold over the SQL, or cannot be measured.
    InvariantBroken: Never,
    /// A lock was not granted in time.
    LockTimeout: May,
    /// The server lacks a resource or cancelled the statement: disk, memory, connections, a cancellation, a conflict.
    DatabaseUnavailable: May,
    /// A streaming standby has not replayed the commit of the up SQL.
    StandbyBehind: May,
    /// A write succeeded although writes were blocked.
    WritesNotBlocked: May,
    /// A write was refused although writes were unblocked.
    WritesStillBlocked: May,
    /// A connection was lost in the middle.
    ConnectionLost: May,
    /// The window's deadline passed.
    DeadlinePassed: May,
    /// A check cannot be measured as it is written.
    CheckInvalid: May,
    /// The code repository cannot be reached.
    RepositoryUnreachable: May,
    /// The code repository refused key, user or push.
    RepositoryDenied: May,
    /// The commit is not in the code repository.
    CommitMissing: May,
    /// The tag or branch is there on another commit.
    RefElsewhere: Never,
    /// A template of a notice cannot be rendered.
    TemplateInvalid: May,
    /// Not every channel, or none, accepted a notice.
    NoticeUndelivered: May,
    /// The task's pods ended without a report.
    PodFailed: May,
    /// The task took longer than allowed.
    StepTimeout: May,
    /// A version probe or check could not be carried out.
    ProbeFailed: May,
    /// A defect of the operator.
    Internal: May,
}

impl From<Reason> for String {
    fn from(reason: Reason) -> Self {
        reason.as_str().to_owned()
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
