//! The role that owns the control schema, and that the SQL of a migration acts as.
//!
//! A login may be another one since the last pod: a rotated one, or a person's. So what is created must not belong to
//! a login, but to the role that all of them may act as: the owner of the database. A schema that is there already
//! keeps its owner. Neither is an owner if a role of the application may act as it: it could unblock writes.

use tokio_postgres::GenericClient;

use super::{ControlSpec, SCHEMA, define, ident};
use crate::{
    api::Reason,
    runner::{Failure, database::version::SET_ROLE_RIGHT},
};

/// The role that creates the control schema, if it is another one than that of the session.
///
/// # Errors
/// Those of [`check_schema`].
pub(super) async fn control_role(client: &impl GenericClient, spec: &ControlSpec) -> Result<Option<String>, Failure> {
    let row = client
        .query_one(
            &format!(
                "SELECT o.rolname::text, o.rolname = current_user, pg_catalog.pg_has_role(current_user, o.oid, 'USAGE'),
                        pg_catalog.pg_has_role(session_user, o.oid, {SET_ROLE_RIGHT}),
                        EXISTS (SELECT FROM pg_catalog.pg_roles a
                                WHERE a.rolname::text = ANY ($1) AND pg_catalog.pg_has_role(a.oid, o.oid, 'MEMBER')),
                        n.oid IS NOT NULL
                 FROM pg_catalog.pg_database d
                 LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = '{SCHEMA}'
                 JOIN pg_catalog.pg_roles o ON o.oid = coalesce(n.nspowner, d.datdba)
                 WHERE d.datname = current_database()"
            ),
            &[&spec.application_roles],
        )
        .await?;
    let (role, own, usage): (String, bool, bool) = (row.get(0), row.get(1), row.get(2));
    let (may_act, of_application, exists): (bool, bool, bool) = (row.get(3), row.get(4), row.get(5));
    if own {
        return Ok(None);
    }
    if exists && (!usage || of_application) {
        let why =
            if usage { "a role of the application may act as it" } else { "the migration role has not its rights" };
        return Err(foreign(&format!("schema {SCHEMA} belongs to role {role}, and {why}")));
    }
    Ok((usage && may_act && !of_application).then_some(role))
}

/// The control schema, if it is there, is one that this program has created: what another role has put in its place
/// would be read by the triggers with the rights of the migration role.
///
/// # Errors
/// `PrivilegeMissing` with what is found; database errors.
pub(crate) async fn check_schema(client: &impl GenericClient, spec: &ControlSpec) -> Result<(), Failure> {
    control_role(client, spec).await?;
    let rows = client
        .query(
            "SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view'
                                   ELSE 'relation' END || ' ' || c.relname::text,
                    pg_catalog.pg_get_userbyid(c.relowner)::text
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = 'credit_migration' AND c.relkind NOT IN ('i', 'c')
               AND (c.relowner <> n.nspowner OR c.relkind NOT IN ('r', 'S') OR c.relhasrules)
             UNION ALL
             SELECT 'function ' || p.proname::text, pg_catalog.pg_get_userbyid(p.proowner)::text
             FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
             WHERE n.nspname = 'credit_migration' AND p.proowner <> n.nspowner
             ORDER BY 1",
            &[],
        )
        .await?;
    match rows.first() {
        None => Ok(()),
        Some(row) => {
            let (what, owner): (&str, &str) = (row.get(0), row.get(1));
            let more = if rows.len() > 1 { format!(" and {} more", rows.len() - 1) } else { String::new() };
            Err(foreign(&format!(
                "{what} of role {owner}{more} in schema {SCHEMA} is not what the operator creates: tables and \
                 functions of the schema's owner"
            )))
        }
    }
}

/// Revokes what default privileges have granted on the control schema to whomever they name: the baseline has users and
/// balances.
///
/// # Errors
/// Database errors.
pub(super) async fn revoke_foreign_rights(client: &impl GenericClient) -> Result<(), Failure> {
    let query = "WITH acl AS (
            SELECT n.nspowner AS owner, pg_catalog.aclexplode(n.nspacl) AS item FROM pg_catalog.pg_namespace n
            WHERE n.nspname = 'credit_migration'
            UNION ALL SELECT c.relowner, pg_catalog.aclexplode(c.relacl) FROM pg_catalog.pg_class c
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'credit_migration'
            UNION ALL SELECT p.proowner, pg_catalog.aclexplode(p.proacl) FROM pg_catalog.pg_proc p
            JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'credit_migration')
        SELECT DISTINCT r.rolname::text FROM acl LEFT JOIN pg_catalog.pg_roles r ON r.oid = (acl.item).grantee
        WHERE (acl.item).grantee <> acl.owner";
    for row in client.query(query, &[]).await? {
        let role = row.get::<_, Option<&str>>(0).map_or("PUBLIC".to_owned(), ident);
        let revoke = format!(
            "REVOKE ALL ON SCHEMA {SCHEMA} FROM {role} CASCADE;
             REVOKE ALL ON ALL TABLES IN SCHEMA {SCHEMA} FROM {role} CASCADE;
             REVOKE ALL ON ALL SEQUENCES IN SCHEMA {SCHEMA} FROM {role} CASCADE;
             REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {SCHEMA} FROM {role} CASCADE"
        );
        define(client, &revoke).await?;
    }
    Ok(())
}

fn foreign(found: &str) -> Failure {
    let message = format!(
        "{found}; next: find out who made it; without a ledger of an earlier migration, as a superuser: DROP SCHEMA \
         {SCHEMA} CASCADE;"
    );
    Failure::new(Reason::PrivilegeMissing, message)
}

/// The role that the SQL of a migration acts as, if it is another one than that of the session: the owner of the
/// control schema, if everything that belongs to the session's role or to one of its groups belongs to that one, too.
/// Then what the SQL creates can be changed by the next login. What belongs to the role on a copy alone does not count.
pub(super) async fn sql_role(client: &impl GenericClient, spec: &ControlSpec) -> Result<Option<String>, Failure> {
    let row = client.query_opt(&sql_role_query("n.nspowner"), &[&spec.not_owned.relations()]).await?;
    Ok(row.map(|row| row.get(0)))
}

fn sql_role_query(owner: &str) -> String {
    format!(
        "SELECT o.rolname::text
         FROM pg_catalog.pg_database d LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = '{SCHEMA}'
         JOIN pg_catalog.pg_roles o ON o.oid = {owner}
         WHERE d.datname = current_database() AND o.rolname <> current_user
           AND pg_catalog.pg_has_role(session_user, o.oid, {SET_ROLE_RIGHT})
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c
                           WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'
                             AND c.oid <> ALL ($1)
                             AND pg_catalog.pg_has_role(current_user, c.relowner, 'USAGE')
                             AND NOT pg_catalog.pg_has_role(o.oid, c.relowner, 'USAGE'))"
    )
}

/// Who is logged in, and to whom it belongs what the SQL creates; for Preflight.
///
/// # Errors
/// Those of [`check_schema`].
pub(crate) async fn described_role(client: &impl GenericClient, spec: &ControlSpec) -> Result<String, Failure> {
    check_schema(client, spec).await?;
    let row = client.query_one("SELECT session_user::text, current_user::text", &[]).await?;
    let (login, role): (&str, &str) = (row.get(0), row.get(1));
    let created_by = match control_role(client, spec).await? {
        Some(owner) => {
            let row = client
                .query_opt(
                    &format!("{} AND o.rolname = $2", sql_role_query("coalesce(n.nspowner, d.datdba)")),
                    &[&spec.not_owned.relations(), &owner],
                )
                .await?;
            row.map(|row| row.get::<_, String>(0))
        }
        None => None,
    };
    let owner = created_by.as_deref().unwrap_or(role);
    Ok(match login == owner {
        true => format!("what the SQL creates belongs to the login {login} itself"),
        false => format!("login {login} acts as {}: what the SQL creates belongs to it", owner),
    })
}
