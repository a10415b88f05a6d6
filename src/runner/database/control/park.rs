//! Tables that the migration gives up (`migration.park`): out of the way, and back again.
//!
//! # Contract
//! - In the transaction of the up SQL, before its first statement: each table moves to a schema of its own, with its
//!   partitions, indexes, triggers and own sequences, and what is granted on it is taken away, but for its owner.
//! - In that of the down SQL, before its first statement: back, with each grant in its old place. No trace is left.
//! - Where they were and what was granted is in the control schema, and goes with the tables: back, or dropped.
//! - Names of roles are kept: a role that was dropped meanwhile gets nothing.

use tokio_postgres::{Client, GenericClient, Row, Transaction};

use super::{
    ControlSpec, LOCK_CHANGE, LOCK_CLASS, Table, define, exists, ident, millis, oids,
    owner::check_schema,
    schema::check_owner,
    tables::{missing, resolve_all},
    trigger_lock_timeout, with_children,
};
use crate::{
    api::{Park, Reason},
    runner::{Failure, database::version::SET_ROLE_RIGHT},
};

/// SQL: relations of the tables `$1` with their own sequences, and their lists of grants. `col` is NULL for the whole.
const ACLS: &str = "objects AS (
    SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.relowner, c.relacl,
           CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
         (SELECT array_agg(to_regclass(name)::oid) AS oids FROM unnest($1::text[]) AS name) AS tables
    WHERE c.oid = ANY (oids) OR c.relkind = 'S' AND EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
          AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY (oids))
), acls AS (
    SELECT oid, kind, schema, name, relowner, 0 AS attnum, NULL::text AS col, relacl AS acl FROM objects
    WHERE relacl IS NOT NULL
    UNION ALL
    SELECT o.oid, kind, schema, name, relowner, a.attnum, a.attname::text, a.attacl
    FROM objects o JOIN pg_attribute a ON a.attrelid = o.oid AND NOT a.attisdropped WHERE a.attacl IS NOT NULL
)";

/// The tables that the spec parks, as they are now: parents before their partitions. None without `migration.park`.
///
/// # Errors
/// `TableMissing`; `TableNotParked` with what keeps one from being moved, or from being moved back; database errors.
pub(crate) async fn tables_to_park(client: &impl GenericClient, spec: &ControlSpec) -> Result<Vec<Table>, Failure> {
    let Some(park) = &spec.park else { return Ok(vec![]) };
    let found = oids(client, &park.tables).await?;
    if let Some((name, _)) = park.tables.iter().zip(&found).find(|(_, oid)| oid.is_none()) {
        return Err(missing(name));
    }
    let mut roots = resolve_all(client, &park.tables).await?;
    roots.sort();
    roots.dedup();
    let tables = with_children(client, &roots).await?;
    match obstacle(client, spec, park, &tables).await? {
        Some(message) => Err(Failure::new(Reason::TableNotParked, message)),
        None => Ok(tables),
    }
}

/// What keeps the tables from being parked, with the next command.
async fn obstacle(
    client: &impl GenericClient,
    spec: &ControlSpec,
    park: &Park,
    tables: &[Table],
) -> Result<Option<String>, Failure> {
    let names: Vec<String> = tables.iter().map(Table::sql).collect();
    let ledger: Vec<u32> = oids(client, &spec.ledger).await?.into_iter().flatten().collect();
    let query = "WITH tables AS (SELECT to_regclass(name)::oid AS oid FROM unnest($1::text[]) AS name)
        SELECT t.oid::regclass::text, t.oid = ANY ($2), p.inhparent::regclass::text,
               (SELECT n.nspname || '.' || o.relname FROM pg_class o JOIN pg_namespace n ON n.oid = o.relnamespace
                WHERE n.nspname::text = $3 AND o.relname = c.relname),
               (SELECT min(s.oid)::regclass::text FROM tables AS u JOIN pg_class s ON s.oid = u.oid
                WHERE s.relname = c.relname AND s.oid <> c.oid)
        FROM tables AS t JOIN pg_class c ON c.oid = t.oid
        LEFT JOIN pg_inherits AS p ON p.inhrelid = t.oid AND p.inhparent NOT IN (SELECT oid FROM tables)
        ORDER BY 1";
    for row in client.query(query, &[&names, &ledger, &park.schema]).await? {
        let name: &str = row.get(0);
        if row.get(1) {
            return Ok(Some(format!(
                "table {name} holds credits, which the new version has to have; next: take it out of \
                 spec.migration.park.tables"
            )));
        }
        if let Some(parent) = row.get::<_, Option<&str>>(2) {
            return Ok(Some(format!(
                "table {name} is a partition or child of {parent}, which is not parked; next: park {parent}, or detach \
                 {name} before the migration"
            )));
        }
        if let Some(taken) = row.get::<_, Option<&str>>(3) {
            return Ok(Some(format!(
                "table {name} cannot be moved: {taken} is there; next: drop that, or choose another \
                 spec.migration.park.schema"
            )));
        }
        if let Some(other) = row.get::<_, Option<&str>>(4) {
            return Ok(Some(format!(
                "tables {name} and {other} have one name, and one schema holds one of them; next: rename one"
            )));
        }
    }
    let query = "SELECT session_user::text FROM pg_namespace
        WHERE nspname::text = $1 AND NOT has_schema_privilege(oid, 'CREATE')";
    if let Some(row) = client.query_opt(query, &[&park.schema]).await? {
        let (schema, login) = (ident(&park.schema), ident(row.get(0)));
        return Ok(Some(format!(
            "schema {} is another role's; next: GRANT CREATE, USAGE ON SCHEMA {schema} TO {login};, or choose another \
             spec.migration.park.schema",
            park.schema
        )));
    }
    // A rollback moves them back, and needs the right where they are now.
    let query = "SELECT DISTINCT n.nspname::text, session_user::text
        FROM unnest($1::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name)
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT has_schema_privilege(n.oid, 'CREATE') ORDER BY 1";
    if let Some(row) = client.query(query, &[&names]).await?.first() {
        let (schema, login): (&str, &str) = (row.get(0), row.get(1));
        return Ok(Some(format!(
            "role {login} may not create in schema {schema}, so a rollback could not move its tables back; next: GRANT \
             CREATE ON SCHEMA {} TO {};",
            ident(schema),
            ident(login)
        )));
    }
    let query = format!(
        "WITH {ACLS} SELECT DISTINCT a.oid::regclass::text, r.rolname::text, session_user::text
         FROM acls a, aclexplode(a.acl) AS i JOIN pg_roles r ON r.oid = i.grantor
         WHERE i.grantor <> a.relowner AND i.grantee <> a.relowner
           AND NOT pg_has_role(session_user, i.grantor, {SET_ROLE_RIGHT}) ORDER BY 1, 2"
    );
    let foreign = client.query(&query, &[&names]).await?;
    Ok(foreign.first().map(|row| {
        let (name, grantor, login): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        format!(
            "role {grantor} has granted rights on {name}, and role {login}, which is no member of it, could not give \
             them back in a rollback; next: GRANT {} TO {};",
            ident(grantor),
            ident(login)
        )
    }))
}

/// Moves the tables away. Nothing without `migration.park`.
///
/// # Errors
/// Those of [`tables_to_park`]; `TableNotParked` with what the server says; `LockTimeout`.
pub(super) async fn park(tx: &Transaction<'_>, spec: &ControlSpec) -> Result<(), Failure> {
    let Some(park) = &spec.park else { return Ok(()) };
    let tables = tables_to_park(tx, spec).await?;
    let names: Vec<String> = tables.iter().map(Table::sql).collect();
    let query = format!(
        "WITH {ACLS} INSERT INTO credit_migration.parked_grants
             (migration_uid, place, kind, schema, name, column_name, grantor, grantee, privilege, grantable)
         SELECT $2, row_number() OVER (ORDER BY a.oid, a.attnum, i.place), a.kind, a.schema, a.name, a.col,
                CASE i.grantor WHEN a.relowner THEN NULL ELSE pg_get_userbyid(i.grantor)::text END,
                CASE i.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(i.grantee)::text END,
                i.privilege_type, i.is_grantable
         FROM acls a, aclexplode(a.acl) WITH ORDINALITY AS i (grantor, grantee, privilege_type, is_grantable, place)"
    );
    tx.execute(&query, &[&names, &spec.uid]).await?;
    let query = format!(
        "WITH {ACLS} SELECT DISTINCT format('REVOKE ALL %sON %s %I.%I FROM %s CASCADE', '(' || quote_ident(a.col) || \
         ') ', a.kind, a.schema, a.name,
                CASE i.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(i.grantee)) END)
         FROM acls a, aclexplode(a.acl) AS i WHERE i.grantee <> a.relowner"
    );
    let mut statements: Vec<String> = tx.query(&query, &[&names]).await?.iter().map(|row| row.get(0)).collect();

    let query = "SELECT NOT EXISTS (SELECT FROM pg_namespace WHERE nspname::text = $1)";
    let is_new: bool = tx.query_one(query, &[&park.schema]).await?.get(0);
    let schema = ident(&park.schema);
    if is_new {
        statements.push(format!("CREATE SCHEMA {schema}"));
    }
    statements.extend(tables.iter().map(|table| format!("ALTER TABLE {} SET SCHEMA {schema}", table.sql())));
    // The checks of foreign keys act as the owner of a table, who has to see it.
    let query = "SELECT DISTINCT quote_ident(pg_get_userbyid(c.relowner)) FROM pg_class c
        WHERE c.oid IN (SELECT to_regclass(name) FROM unnest($1::text[]) AS name)
          AND c.relowner <> (SELECT oid FROM pg_roles WHERE rolname = current_user)";
    for owner in tx.query(query, &[&names]).await?.iter().map(|row| row.get::<_, String>(0)) {
        statements.push(format!("GRANT USAGE ON SCHEMA {schema} TO {owner}"));
    }
    define(tx, &statements.join("; ")).await.map_err(|failure| not_parked("cannot be parked", failure))?;

    let (schemas, tables): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
    tx.execute(
        "INSERT INTO credit_migration.parked_tables (migration_uid, place, schema, name, parked_in, schema_is_new)
         SELECT $1, t.place, t.schema, t.name, $4, $5
         FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS t (schema, name, place)",
        &[&spec.uid, &schemas, &tables, &park.schema, &is_new],
    )
    .await?;
    Ok(())
}

/// Moves the tables back, and gives each grant back. `settings` are those of the transaction, which hold again
/// afterwards. Nothing if none is parked.
///
/// # Errors
/// `TableNotParked` with what the server says; `LockTimeout`.
pub(super) async fn unpark(tx: &Transaction<'_>, spec: &ControlSpec, settings: &str) -> Result<(), Failure> {
    let parked = Parked::read(tx, spec).await?;
    if parked.0.is_empty() {
        return Ok(());
    }
    let mut moves: Vec<String> = parked
        .0
        .iter()
        // A partition may have been dropped meanwhile, by a job that the owner's rights allow.
        .map(|of| format!("ALTER TABLE IF EXISTS {} SET SCHEMA {}", of.now().sql(), ident(&of.table.schema)))
        .collect();
    moves.extend(parked.added(tx).await?.iter().map(|(table, schema)| {
        // One that was added belongs where its parent was.
        format!("ALTER TABLE {} SET SCHEMA {}", table.sql(), ident(schema))
    }));
    define(tx, &moves.join("; ")).await.map_err(|failure| not_parked("cannot be moved back", failure))?;
    let query = "SELECT g.kind, g.schema, g.name, g.column_name, g.grantor, g.grantee, g.grantable,
                        array_agg(g.privilege ORDER BY g.place), pg_get_userbyid(c.relowner)::text
        FROM credit_migration.parked_grants g
        JOIN pg_class c ON c.oid = to_regclass(format('%I.%I', g.schema, g.name))
        WHERE migration_uid = $1
          AND (g.grantor IS NULL OR EXISTS (SELECT FROM pg_roles WHERE rolname::text = g.grantor))
          AND (g.grantee IS NULL OR EXISTS (SELECT FROM pg_roles WHERE rolname::text = g.grantee))
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 9 ORDER BY min(g.place)";
    let grants = tx.query(query, &[&spec.uid]).await?;
    let mut statements: Vec<String> = vec![];
    let mut list = String::new();
    for row in &grants {
        let grant = Grant::of(row);
        // The owner's own entry is where it was in the list only if all are made again.
        let revoke = format!("REVOKE ALL {}ON {} FROM {}", grant.columns, grant.on, ident(row.get(8)));
        if list != revoke {
            statements.push(revoke.clone());
            list = revoke;
        }
        statements.push(grant.statement(settings));
    }
    if !statements.is_empty() {
        define(tx, &statements.join("; ")).await.map_err(|failure| not_parked("do not get their grants", failure))?;
    }
    parked.forget(tx, spec).await
}

/// What is changed by a migration that has run, of `tables`: parked ones under the names that they have now.
///
/// # Errors
/// Database errors.
pub(crate) async fn with_parked(
    client: &impl GenericClient,
    spec: &ControlSpec,
    mut tables: Vec<String>,
) -> Result<Vec<String>, Failure> {
    let parked = Parked::read(client, spec).await?;
    if let (Some(park), false) = (&spec.park, parked.0.is_empty()) {
        tables.retain(|table| !park.tables.contains(table));
        tables.extend(parked.0.iter().map(|of| of.now().to_string()));
    }
    Ok(tables)
}

/// Drops the tables that this migration has parked. Returns how many. None are left when it is called again.
///
/// In: a connection as the migration role, outside of a transaction.
///
/// # Errors
/// `DatabaseInUse` while another migration has claimed the database: its rehearsal is valid for one schema;
/// `ParkedTableInUse` if something depends on a table; `LockTimeout`; database errors.
pub async fn drop_parked(client: &mut Client, spec: &ControlSpec) -> Result<usize, Failure> {
    check_schema(client, spec).await?;
    let tx = client.transaction().await?;
    tx.batch_execute(&format!(
        "SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = {};
         SELECT pg_catalog.pg_advisory_xact_lock({LOCK_CLASS}, {LOCK_CHANGE})",
        millis(trigger_lock_timeout(spec))
    ))
    .await?;
    let parked = Parked::read(&tx, spec).await?;
    if parked.0.is_empty() {
        return Ok(0);
    }
    if exists(&tx, "claim").await? {
        check_owner(&tx, spec).await?;
    }
    // Without CASCADE: what still needs a table is not dropped with it.
    let names: Vec<String> = parked.0.iter().map(|of| of.now().sql()).collect();
    let dropped = define(&tx, &format!("DROP TABLE IF EXISTS {}", names.join(", "))).await;
    dropped.map_err(|Failure { reason, message }| match reason {
        Reason::SqlFailed => {
            let next = "drop what depends on them, or the tables with CASCADE";
            Failure::new(Reason::ParkedTableInUse, format!("parked tables are not dropped: {message}; next: {next}"))
        }
        reason => Failure::new(reason, format!("parked tables are not dropped: {message}")),
    })?;
    parked.forget(&tx, spec).await?;
    tx.commit().await?;
    Ok(parked.0.len())
}

/// Tables of this migration that are parked, parents before their partitions.
struct Parked(Vec<ParkedTable>);

struct ParkedTable {
    /// Where it was.
    table: Table,
    parked_in: String,
    schema_is_new: bool,
}

impl ParkedTable {
    /// Where it is.
    fn now(&self) -> Table {
        Table { schema: self.parked_in.clone(), name: self.table.name.clone() }
    }
}

impl Parked {
    async fn read(tx: &impl GenericClient, spec: &ControlSpec) -> Result<Self, Failure> {
        if !exists(tx, "parked_tables").await? {
            return Ok(Self(vec![]));
        }
        let query = "SELECT schema, name, parked_in, schema_is_new FROM credit_migration.parked_tables
            WHERE migration_uid = $1 ORDER BY place";
        let rows = tx.query(query, &[&spec.uid]).await?;
        let of = |row: &Row| ParkedTable {
            table: Table { schema: row.get(0), name: row.get(1) },
            parked_in: row.get(2),
            schema_is_new: row.get(3),
        };
        Ok(Self(rows.iter().map(of).collect()))
    }

    /// Partitions and children that were added to them while they were parked, in the schema of the parked tables: each
    /// with the schema where its root was.
    async fn added(&self, tx: &Transaction<'_>) -> Result<Vec<(Table, String)>, Failure> {
        let mut added: Vec<(Table, String)> = Vec::new();
        for of in &self.0 {
            for table in with_children(tx, &[of.now()]).await? {
                let known = self.0.iter().any(|of| of.now() == table) || added.iter().any(|(other, _)| *other == table);
                if !known && table.schema == of.parked_in {
                    added.push((table, of.table.schema.clone()));
                }
            }
        }
        Ok(added)
    }

    /// They are there no more: neither is their record, nor a schema that was made for them and is empty.
    async fn forget(&self, tx: &Transaction<'_>, spec: &ControlSpec) -> Result<(), Failure> {
        let deleted = "DELETE FROM credit_migration.parked_tables WHERE migration_uid = $1";
        tx.execute(deleted, &[&spec.uid]).await?;
        tx.execute("DELETE FROM credit_migration.parked_grants WHERE migration_uid = $1", &[&spec.uid]).await?;
        let Some(made) = self.0.iter().find(|of| of.schema_is_new) else { return Ok(()) };
        tx.batch_execute("SAVEPOINT parked").await?;
        let end = match define(tx, &format!("DROP SCHEMA IF EXISTS {}", ident(&made.parked_in))).await {
            Ok(()) => "RELEASE SAVEPOINT parked",
            Err(failure) if failure.is_connection_lost() => return Err(failure),
            // Something else is in it.
            Err(_) => "ROLLBACK TO SAVEPOINT parked; RELEASE SAVEPOINT parked",
        };
        tx.batch_execute(end).await.map_err(Failure::from)
    }
}

/// What one role has granted to one role on one table, column or sequence.
struct Grant {
    /// `(column) `, or nothing.
    columns: String,
    /// `TABLE schema.table`
    on: String,
    privileges: Vec<String>,
    /// `None`: the owner.
    grantor: Option<String>,
    /// `None`: to `PUBLIC`.
    grantee: Option<String>,
    grantable: bool,
}

impl Grant {
    fn of(row: &Row) -> Self {
        let (kind, privileges): (&str, Vec<String>) = (row.get(0), row.get(7));
        let table = Table { schema: row.get(1), name: row.get(2) };
        Self {
            columns: row.get::<_, Option<&str>>(3).map(|column| format!("({}) ", ident(column))).unwrap_or_default(),
            on: format!("{kind} {}", table.sql()),
            privileges,
            grantor: row.get(4),
            grantee: row.get(5),
            grantable: row.get(6),
        }
    }

    /// What grants it again, as the role that had granted it.
    fn statement(&self, settings: &str) -> String {
        let Self { columns, on, .. } = self;
        let privileges: Vec<String> =
            self.privileges.iter().map(|privilege| format!("{privilege} {columns}")).collect();
        let to = self.grantee.as_deref().map_or("PUBLIC".to_owned(), ident);
        let option = if self.grantable { " WITH GRANT OPTION" } else { "" };
        let grant = format!("GRANT {} ON {on} TO {to}{option}", privileges.join(", "));
        match &self.grantor {
            None => grant,
            Some(grantor) => format!("SET LOCAL ROLE {}; {grant}; RESET ROLE; {settings}", ident(grantor)),
        }
    }
}

/// A table that is not moved: not for a lock, which may be free the next time.
fn not_parked(what: &str, Failure { reason, message }: Failure) -> Failure {
    match reason {
        Reason::SqlFailed => {
            let next = "see spec.migration.park; what the up SQL creates must not have their names";
            Failure::new(Reason::TableNotParked, format!("the parked tables {what}: {message}; next: {next}"))
        }
        reason => Failure::new(reason, format!("the parked tables {what}: {message}")),
    }
}
