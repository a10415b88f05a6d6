//! Preflight's part on the database: versions, roles, privileges, tables, columns, claims.

use tokio_postgres::{Client, Row, error::ErrorPosition, types::ToSql};

use crate::{
    api::{AllTablesPublications, CreditMigrationSpec, LeftOutObjects, Reason, Topic},
    runner::{
        Failure,
        clients::pg_tools::Version,
        context::TaskContext,
        database::{
            connection::Target,
            control::{described_role, exists, ident, literal, oids, quoted, tables_to_park},
            left_out::{self, Facts},
            table_users::TableUsage,
            version::{SET_ROLE_RIGHT, SUPPORTED, ServerVersion},
        },
        tasks::findings::Findings,
    },
    shared::{quoted::Quoted, sql::without_mark},
};

/// How much of what cannot be dumped is named.
const MAX_NAMED_OBJECTS: usize = 5;

/// Checks the database that `client` is connected to.
pub async fn check(context: &TaskContext<'_>, target: &Target, client: &Client, findings: &mut Findings) {
    findings.add("server version", version(context, client).await);
    findings.add("primary server", primary(client).await);
    for (what, result) in role(target, client).await {
        findings.add(what, result);
    }
    let described = described_role(client, &context.control_spec()).await;
    // What a schema of another says is not believed.
    let schema_refused = described.is_err();
    findings.add("migration role", described);
    for application in &context.spec.plan.database.application_roles {
        findings.add(format!("application role {application}"), application_role(target, client, application).await);
    }
    for table in context.control_spec().protected {
        findings.add(format!("table {table}"), owned_table(target, client, &table).await);
    }
    for table in context.control_spec().protected_after {
        // Most are made by the up SQL.
        if !matches!(oid(client, &table).await, Ok(None)) {
            findings.add(format!("table {table}"), owned_table(target, client, &table).await);
        }
    }
    if let Some(park) = &context.spec.plan.migration.park {
        let parked = tables_to_park(client, &context.control_spec()).await.map(|tables| {
            let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
            format!("{} can be moved to schema {}", names.join(", "), park.schema)
        });
        findings.add("parked tables", parked);
    }
    findings.add("subscriptions", subscriptions(client, &context.control_spec().protected).await);
    let allowed = context.spec.plan.database.all_tables_publications == AllTablesPublications::Allowed;
    findings.add("publications", publications(client, &context.control_spec().protected, allowed).await);
    findings.add("logical slots", logical_slots(client).await);
    let known = &context.spec.plan.database.application_roles;
    let users = TableUsage::read(client, &context.changed_tables(), known).await;
    findings.add_table_users(users.map(TableUsage::evidence));
    findings.add("rights to dump", dumpable(target, client).await);
    copy(context, target, client, findings).await;
    for (what, result) in columns(context, client).await {
        findings.add(what, result);
    }
    if !schema_refused {
        findings.add("other migrations", claim(context, client).await);
    }
}

/// Asks the server's own parser. Nothing is run: the text is the body of a temporary function that is rolled back, and
/// an argument of a polymorphic type makes the server parse it without resolving tables. `false`: the server could not
/// be asked.
///
/// # Errors
/// `SqlSyntaxError` with the line.
pub async fn parse(client: &Client, name: &str, sql: &str) -> Result<bool, Failure> {
    let sql = without_mark(sql);
    let statement = format!(
        "CREATE FUNCTION pg_temp.credit_migration_parse(anyelement) RETURNS void LANGUAGE sql AS {}",
        literal(sql)
    );
    let start = "BEGIN; SET LOCAL check_function_bodies = on";
    if client.batch_execute(start).await.is_err() {
        return Ok(false);
    }
    let parsed = client.batch_execute(&statement).await;
    let _ = client.batch_execute("ROLLBACK").await;
    let Err(error) = parsed else { return Ok(true) };
    let Some(db) = error.as_db_error().filter(|db| db.code().code() == "42601") else { return Ok(false) };
    // Mostly the server says where in the statement it is: the text starts on the statement's first line, and keeps
    // its line breaks as a literal.
    let line = db.position().map(|position| {
        let (text, position) = match position {
            ErrorPosition::Original(position) => (statement.as_str(), position),
            ErrorPosition::Internal { position, .. } => (sql, position),
        };
        let before = usize::try_from(*position).unwrap_or(1).saturating_sub(1);
        text.chars().take(before).filter(|c| *c == '\n').count() + 1
    });
    let at = line.map(|line| format!(", line {line}")).unwrap_or_default();
    Err(Failure::new(Reason::SqlSyntaxError, format!("{name}{at}: {}", db.message())))
}

async fn one(client: &Client, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, Failure> {
    client.query_one(query, parameters).await.map_err(Failure::from)
}

/// Of a relation that the spec names.
async fn oid(client: &Client, name: &str) -> Result<Option<u32>, Failure> {
    Ok(oids(client, &[name.to_owned()]).await?.into_iter().flatten().next())
}

async fn version(context: &TaskContext<'_>, client: &Client) -> Result<String, Failure> {
    fits(ServerVersion::of(client).await?, &context.tools.version().await?)
}

/// The server's version is supported, and `pg_dump` is not older: it refuses a server that is newer than itself.
fn fits(server: ServerVersion, tool: &Version) -> Result<String, Failure> {
    let (oldest, newest) = SUPPORTED.into_inner();
    let supported = format!("the server is {server}, supported are {oldest} to {newest}");
    if server.major < oldest {
        return Err(Failure::new(Reason::ServerTooOld, format!("{supported}; next: upgrade the server")));
    }
    if server.major > newest {
        let next = "use a newer operator that supports it";
        return Err(Failure::new(Reason::ServerTooNew, format!("{supported}; next: {next}")));
    }
    if server.major > tool.major {
        return Err(Failure::new(
            Reason::ServerTooNew,
            format!(
                "the server is {server}, pg_dump of this image is {}; next: use an image of the operator with pg_dump \
                    {newest}",
                tool.text
            ),
        ));
    }
    Ok(format!("{server}, pg_dump {}", tool.text))
}

async fn primary(client: &Client) -> Result<String, Failure> {
    let row = one(client, "SELECT pg_is_in_recovery()", &[]).await?;
    if row.get(0) {
        return Err(Failure::new(
            Reason::HostUnreachable,
            "the connection leads to a standby, which cannot be migrated; it is retried; next: put the primary's \
             address into the URL",
        ));
    }
    Ok("the server is a primary".to_owned())
}

/// What the migration role itself must be.
async fn role(target: &Target, client: &Client) -> Vec<(&'static str, Result<String, Failure>)> {
    let query = "SELECT pg_has_role(d.datdba, 'USAGE'), pg_get_userbyid(d.datdba)::text,
                        has_database_privilege(d.oid, 'CREATE'),
                        pg_has_role('pg_signal_backend', 'USAGE'),
                        (SELECT rolsuper FROM pg_roles AS o WHERE o.oid = d.datdba)
                 FROM pg_database AS d, pg_roles AS r
                 WHERE d.datname = current_database() AND r.rolname = current_user";
    let row = match one(client, query, &[]).await {
        Ok(row) => row,
        Err(failure) => return vec![("privileges", Err(failure))],
    };
    let (me, database) = (ident(target.user()), ident(target.database()));
    let own = own(&format!("DATABASE {database}"), row.get(1), row.get(4), &me);
    let check = |index: usize, good: &str, wrong: &str, fix: String| match row.get(index) {
        true => Ok(good.to_owned()),
        false => Err(Failure::new(Reason::PrivilegeMissing, format!("role {} {wrong}; next: {fix};", target.user()))),
    };
    vec![
        ("owner of the database", check(0, "is owner", "does not own the database", own)),
        (
            "CREATE on the database",
            check(2, "granted", "may not create schemas", format!("GRANT CREATE ON DATABASE {database} TO {me}")),
        ),
        (
            "pg_signal_backend",
            check(3, "granted", "may not end sessions of the application", format!("GRANT pg_signal_backend TO {me}")),
        ),
    ]
}

/// How `me` gets to own `what`. Membership in a superuser would make it one.
fn own(what: &str, owner: &str, superuser: bool, me: &str) -> String {
    match superuser {
        true => format!("ALTER {what} OWNER TO {me}"),
        false => format!("GRANT {} TO {me}", ident(owner)),
    }
}

/// The role exists, its sessions can be ended, and the migration role can act as it to verify that writes are blocked.
async fn application_role(target: &Target, client: &Client, application: &str) -> Result<String, Failure> {
    let own = "SELECT $1 IN (session_user::text, current_user::text)";
    if one(client, own, &[&application]).await?.get(0) {
        return Err(Failure::new(
            Reason::RoleMissing,
            format!(
                "role {application} is the migration role itself: its sessions look like those of the operator; \
                 next: give the application a role of its own, or correct spec.database.applicationRoles"
            ),
        ));
    }
    // Without inheritance the start of its sessions is hidden, and those that must be ended could not be distinguished.
    let query = format!(
        "SELECT pg_has_role(session_user, oid, {SET_ROLE_RIGHT}), rolsuper,
                pg_has_role(oid, 'USAGE') OR pg_has_role('pg_read_all_stats', 'USAGE')
         FROM pg_roles WHERE rolname::text = $1"
    );
    let found = client.query_opt(&query, &[&application]).await?;
    let (me, them) = (ident(target.user()), ident(application));
    let Some(found) = found else {
        return Err(Failure::new(
            Reason::RoleMissing,
            format!(
                "role {application} does not exist; next: CREATE ROLE {them} LOGIN; or correct \
                    spec.database.applicationRoles"
            ),
        ));
    };
    if found.get(1) {
        return Err(Failure::new(
            Reason::PrivilegeMissing,
            format!(
                "role {application} is a superuser, whose sessions only a superuser can end; next: ALTER ROLE {them} \
                    NOSUPERUSER;"
            ),
        ));
    }
    if !found.get::<_, bool>(0) {
        return Err(Failure::new(
            Reason::PrivilegeMissing,
            format!("role {} is no member of {application}; next: GRANT {them} TO {me};", target.user()),
        ));
    }
    if !found.get::<_, bool>(2) {
        return Err(Failure::new(
            Reason::PrivilegeMissing,
            format!(
                "role {} inherits nothing of {application}, so it does not see when sessions of {application} \
                    started; next: GRANT pg_read_all_stats TO {me};",
                target.user()
            ),
        ));
    }
    Ok(format!("{} is a member", target.user()))
}

/// No enabled subscription writes to a protected table: the apply workers of logical replication fire no statement
/// triggers, so the write block does not stop them.
async fn subscriptions(client: &Client, tables: &[String]) -> Result<String, Failure> {
    // By name: before version 14 an ordinary role may not read the subscription's oid, but that of the view.
    let query = "WITH RECURSIVE tree (oid) AS (
                     SELECT unnest($1::oid[])
                     UNION SELECT i.inhrelid FROM pg_inherits AS i JOIN tree AS t ON i.inhparent = t.oid)
                 SELECT DISTINCT s.subname::text, r.srrelid::regclass::text
                 FROM pg_subscription_rel AS r JOIN tree AS t ON t.oid = r.srrelid
                 JOIN pg_stat_subscription AS v ON v.subid = r.srsubid
                 JOIN pg_subscription AS s ON s.subname = v.subname
                      AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                 WHERE s.subenabled ORDER BY 1, 2";
    let rows = client.query(query, &[&oids(client, tables).await?]).await?;
    let Some(first) = rows.first() else { return Ok("none writes to a protected table".to_owned()) };
    let (name, table): (&str, &str) = (first.get(0), first.get(1));
    let more = if rows.len() > 1 { format!(" and {} more", rows.len() - 1) } else { String::new() };
    Err(Failure::new(
        Reason::WritesNotBlocked,
        format!(
            "subscription {name} writes to {table}{more}, and the write block does not stop what logical replication \
                applies; next: ALTER SUBSCRIPTION {} DISABLE;",
            ident(name)
        ),
    ))
}

/// What publishes a protected table. A publication for all tables also publishes the control schema, which subscribers
/// do not have: their apply workers stop with an error.
async fn publications(client: &Client, tables: &[String], all_allowed: bool) -> Result<String, Failure> {
    let query = "SELECT p.pubname::text, p.puballtables, coalesce(string_agg(DISTINCT t.tablename::text, ', '), '')
                 FROM pg_publication AS p JOIN pg_publication_tables AS t ON t.pubname = p.pubname
                 WHERE p.puballtables OR to_regclass(format('%I.%I', t.schemaname, t.tablename))::oid = ANY ($1)
                 GROUP BY 1, 2 ORDER BY 2 DESC, 1";
    let rows = client.query(query, &[&oids(client, tables).await?]).await?;
    let Some(first) = rows.first() else { return Ok("none publishes a protected table".to_owned()) };
    if first.get(1) && !all_allowed {
        let name: &str = first.get(0);
        return Err(Failure::new(
            Reason::AllTablesPublished,
            format!(
                "publication {name} is FOR ALL TABLES and publishes schema credit_migration, too: a subscriber without \
                 its tables stops applying, and its slot keeps WAL; next: publish tables or schemas by name, or set \
                 spec.database.allTablesPublications: Allowed once the subscribers have these tables"
            ),
        ));
    }
    let named: Vec<String> = rows
        .iter()
        .map(|row| match row.get(1) {
            true => format!("{} (all tables)", row.get::<_, &str>(0)),
            false => format!("{} ({})", row.get::<_, &str>(0), row.get::<_, &str>(2)),
        })
        .collect();
    Ok(format!("{}; what the up SQL renames or drops has to be changed on the subscribers, too", named.join(", ")))
}

/// Logical slots with what they keep: a migration that stops their consumers fills the disk with WAL.
async fn logical_slots(client: &Client) -> Result<String, Failure> {
    let query = "SELECT slot_name::text, coalesce(plugin::text, ''), active,
                        coalesce(pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)), 'unknown')
                 FROM pg_replication_slots WHERE slot_type = 'logical' AND database = current_database() ORDER BY 1";
    let rows = client.query(query, &[]).await?;
    if rows.is_empty() {
        return Ok("none".to_owned());
    }
    let slots = rows.iter().map(|row| {
        let (name, plugin, active, lag): (&str, &str, bool, &str) = (row.get(0), row.get(1), row.get(2), row.get(3));
        // A plugin without publications decodes each table.
        let all = if plugin == "pgoutput" { "" } else { ", decodes schema credit_migration, too" };
        let active = if active { "active" } else { "inactive" };
        format!("{name} ({plugin}, {active}, {lag} behind{all})")
    });
    Ok(slots.collect::<Vec<_>>().join(", "))
}

/// The table exists, is an ordinary or partitioned one, and belongs to the migration role.
async fn owned_table(target: &Target, client: &Client, name: &str) -> Result<String, Failure> {
    let query = "SELECT c.relkind IN ('r', 'p'), pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)::text,
                        (SELECT rolsuper FROM pg_roles AS o WHERE o.oid = c.relowner)
                 FROM pg_class AS c WHERE c.oid = $1";
    let found = client.query_opt(query, &[&oid(client, name).await?]).await?;
    let missing = |what: &str| {
        Failure::new(Reason::TableMissing, format!("table {name} {what}; next: correct spec.credits or spec.migration"))
    };
    let Some(found) = found else { return Err(missing("does not exist")) };
    if !found.get::<_, bool>(0) {
        return Err(missing("is not a table"));
    }
    if !found.get::<_, bool>(1) {
        let own = own(&format!("TABLE {}", quoted(name)), found.get(2), found.get(3), &ident(target.user()));
        return Err(Failure::new(
            Reason::PrivilegeMissing,
            format!("role {} does not own table {name}; next: {own};", target.user()),
        ));
    }
    Ok("exists and is owned".to_owned())
}

/// `pg_dump` locks and reads every table, and reads every sequence and large object, also those that the migration
/// leaves alone, and all rows. What belongs to an extension it leaves out.
async fn dumpable(target: &Target, client: &Client) -> Result<String, Failure> {
    let query = "SELECT n.nspname::text, c.relname::text, c.relkind = 'S', has_schema_privilege(n.oid, 'USAGE'),
                        has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid)
                 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'p', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                   AND NOT EXISTS (SELECT FROM pg_depend AS d
                                   WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
                 ORDER BY 1, 2";
    let rows = client.query(query, &[]).await?;
    let me = ident(target.user());
    let mut missing = Vec::new();
    for row in &rows {
        let (schema, name): (&str, &str) = (row.get(0), row.get(1));
        let usage = (format!("schema {schema}"), format!("GRANT USAGE ON SCHEMA {} TO {me};", ident(schema)));
        if !row.get::<_, bool>(3) && !missing.contains(&usage) {
            missing.push(usage);
        }
        if !row.get::<_, bool>(4) {
            let (kind, on) = if row.get(2) { ("sequence", "SEQUENCE") } else { ("table", "TABLE") };
            let select = format!("GRANT SELECT ON {on} {}.{} TO {me};", ident(schema), ident(name));
            missing.push((format!("{kind} {schema}.{name}"), select));
        } else if row.get(5) {
            let table = format!("table {schema}.{name} with its row-level security");
            missing.push((table, format!("ALTER ROLE {me} BYPASSRLS;")));
        }
    }
    let query = "SELECT oid FROM pg_largeobject_metadata
                 WHERE NOT pg_has_role(lomowner, 'USAGE') AND NOT EXISTS (
                     SELECT FROM aclexplode(lomacl) AS a WHERE a.privilege_type = 'SELECT'
                     AND CASE a.grantee WHEN 0 THEN true ELSE pg_has_role(a.grantee, 'USAGE') END)
                 ORDER BY 1";
    for row in client.query(query, &[]).await? {
        let object: u32 = row.get(0);
        missing.push((format!("large object {object}"), format!("GRANT SELECT ON LARGE OBJECT {object} TO {me};")));
    }
    if missing.is_empty() {
        return Ok(format!("{} tables and sequences can be read", rows.len()));
    }
    let (user, more) = (target.user(), missing.len().saturating_sub(MAX_NAMED_OBJECTS));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    missing.truncate(MAX_NAMED_OBJECTS);
    let (names, mut statements): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    statements.dedup();
    let message = format!("role {user} may not dump {}{more}; next: {}", names.join(", "), statements.join(" "));
    Err(Failure::new(Reason::PrivilegeMissing, message))
}

/// What a copy of the database would go without. Which extensions the role may create only the copy shows for certain.
async fn copy(context: &TaskContext<'_>, target: &Target, client: &Client, findings: &mut Findings) {
    let facts = async {
        let refused = left_out::untrusted_extensions(client).await?;
        Facts::read(client, &context.control_spec().protected, &refused).await
    };
    let (left_out, result) = match facts.await {
        Ok(facts) => {
            let left_out = facts.left_out(vec![]);
            let summary = left_out.summary().unwrap_or_else(|| "all of it can be restored".to_owned());
            (left_out, facts.require_restorable(target.user()).map(|()| summary))
        }
        Err(failure) => (LeftOutObjects::default(), Err(failure)),
    };
    findings.add_left_out(left_out, result);
}

/// Columns of both credit tables.
async fn columns(context: &TaskContext<'_>, client: &Client) -> Vec<(String, Result<String, Failure>)> {
    let (balances, transactions) = (&context.spec.plan.credits.balances, &context.spec.plan.credits.transactions);
    let mut wanted = vec![
        (&balances.table, Some(&balances.user_column), Kind::Unique),
        (&balances.table, Some(&balances.balance_column), Kind::Number),
        (&balances.table, balances.purchased_column.as_ref(), Kind::Number),
    ];
    if let Some(transactions) = transactions {
        wanted.extend([
            (&transactions.table, Some(&transactions.user_column), Kind::Any),
            (&transactions.table, transactions.type_column.as_ref(), Kind::Any),
            (&transactions.table, Some(&transactions.amount_column), Kind::Number),
            (&transactions.table, Some(&transactions.created_at_column), Kind::Time),
        ]);
    }
    let mut found = not_measured(&context.spec.plan);
    for (table, column, kind) in wanted {
        let Some(column) = column else { continue };
        // A missing table is a finding of its own.
        if matches!(oid(client, table).await, Ok(None)) {
            continue;
        }
        let mut checked = check_column(client, table, column, kind).await;
        if kind == Kind::Time && matches!(&checked, Ok(kind_of) if !kind_of.ends_with(" with time zone")) {
            let zone = transactions.as_ref().map_or("", |transactions| transactions.created_at_time_zone.as_str());
            checked = time_zone(client, table, column, zone).await;
        }
        found.push((format!("column {table}.{column}"), checked));
    }
    found
}

/// What the spec says the ledger does not have: nothing is wrong, and people should know.
fn not_measured(plan: &CreditMigrationSpec) -> Vec<(String, Result<String, Failure>)> {
    let gaps = plan.not_covered().into_iter().filter(|gap| gap.topic == Topic::Ledger);
    gaps.map(|gap| ("not measured".to_owned(), Ok(format!("{}; to measure it {}", gap.what, gap.next)))).collect()
}

/// How the times of a column are read; what a `timestamp` column does not say the spec must.
async fn time_zone(client: &Client, table: &str, column: &str, zone: &str) -> Result<String, Failure> {
    let query = "SELECT coalesce(nullif(t.typbasetype, 0), t.oid) = 'timestamptz'::regtype,
                        EXISTS (SELECT FROM pg_timezone_names WHERE lower(name) = lower($3))
                 FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
                 WHERE a.attrelid = $1 AND a.attname::text = $2";
    let row = client.query_one(query, &[&oid(client, table).await?, &column, &zone]).await?;
    match (row.get(0), row.get(1)) {
        (true, _) => Ok("timestamp with time zone".to_owned()),
        (false, true) => Ok(format!("timestamp without time zone, read as {zone}")),
        (false, false) => Err(Failure::new(
            Reason::ColumnMissing,
            format!(
                "column {column} of {table} is timestamp without time zone, and the server knows no zone {}; \
                    next: set spec.credits.transactions.createdAtTimeZone to an IANA name, for example Europe/Berlin",
                Quoted(zone)
            ),
        )),
    }
}

/// What a column must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Any,
    Number,
    Unique,
    Time,
}

async fn check_column(client: &Client, table: &str, column: &str, kind: Kind) -> Result<String, Failure> {
    // A domain counts as the type beneath it.
    let query = "SELECT format_type(a.atttypid, a.atttypmod),
                        coalesce(nullif(t.typbasetype, 0), t.oid)
                            IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype),
                        EXISTS (SELECT FROM pg_index AS i
                                WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indisvalid
                                AND i.indpred IS NULL AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum),
                        coalesce(nullif(t.typbasetype, 0), t.oid) IN ('timestamptz'::regtype, 'timestamp'::regtype)
                 FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
                 WHERE a.attrelid = $1 AND a.attname::text = $2 AND a.attnum > 0 AND NOT a.attisdropped";
    let found = client.query_opt(query, &[&oid(client, table).await?, &column]).await?;
    let wrong = |what: String| Failure::new(Reason::ColumnMissing, format!("column {column} of {table} {what}"));
    let Some(found) = found else {
        return Err(wrong("does not exist; next: correct the column's name in spec.credits".to_owned()));
    };
    let (kind_of, number, unique): (String, bool, bool) = (found.get(0), found.get(1), found.get(2));
    // Later checks explain balances by the transactions since the cutover: to the moment, not to the day.
    if kind == Kind::Time && !found.get::<_, bool>(3) {
        return Err(wrong(format!(
            "is {kind_of}, not timestamptz or timestamp; next: name the column with the time of a transaction in \
                spec.credits.transactions.createdAtColumn"
        )));
    }
    if kind == Kind::Number && !number {
        return Err(wrong(format!(
            "is {kind_of}, and money must be exact: smallint, integer, bigint or numeric; next: correct the column's \
                name in spec.credits, or change its type before the migration"
        )));
    }
    if kind == Kind::Unique && !unique {
        return Err(wrong(format!(
            "is not unique, and each user must have one balance; next: CREATE UNIQUE INDEX CONCURRENTLY ON {} ({});",
            quoted(table),
            ident(column)
        )));
    }
    Ok(kind_of)
}

/// No other migration holds the database.
async fn claim(context: &TaskContext<'_>, client: &Client) -> Result<String, Failure> {
    if !exists(client, "claim").await? {
        return Ok("none".to_owned());
    }
    let query = "SELECT migration_name, migration_uid FROM credit_migration.claim WHERE migration_uid <> $1";
    let found = client.query_opt(query, &[&context.spec.migration_uid]).await?;
    match found {
        None => Ok("none".to_owned()),
        Some(row) => {
            let (name, uid): (&str, &str) = (row.get(0), row.get(1));
            Err(Failure::new(
                Reason::DatabaseInUse,
                format!(
                    "migration {name} (uid {uid}) holds the database; next: let it end, or abort it with a \
                        MigrationDecision"
                ),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_supported_version_fits_and_no_other() {
        let reason = |major, tool| {
            let tool = Version { text: format!("{tool}.1"), major: tool };
            fits(ServerVersion { major }, &tool).err().map(|failure| failure.reason)
        };
        let (oldest, newest) = SUPPORTED.into_inner();
        for major in SUPPORTED {
            assert_eq!(reason(major, newest), None, "{major}");
        }
        assert_eq!(reason(oldest - 1, newest), Some(Reason::ServerTooOld));
        assert_eq!(reason(newest + 1, newest + 1), Some(Reason::ServerTooNew), "pg_dump alone is not enough");
        assert_eq!(reason(newest, newest - 1), Some(Reason::ServerTooNew), "pg_dump is older");
    }
}
