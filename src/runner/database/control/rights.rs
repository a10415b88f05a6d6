//! What each role of the application may do: read before the up SQL, compared after it. A table that is dropped and
//! created again has lost its grants, and no check of the old version notices it.
//!
//! # Contract
//! - Rights on tables, columns, views, sequences and schemas, by whatever way a role has them: its own grants, those of
//!   its groups and of `PUBLIC`, ownership.
//! - Objects are compared by name: what the SQL drops or renames is no loss, what takes an old name must have the
//!   rights of the old object.
//! - Catalogs alone are read. A superuser loses nothing.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Transaction;

use super::ControlSpec;
use crate::{
    api::{LostRight, MAX_LOST_RIGHTS, Reason},
    runner::Failure,
};

/// Role, kind and quoted name of an object, column (empty: the whole object) and privilege, for each grantee whose
/// rights a role has.
const RIGHTS: &str = r#"
WITH grantees AS (
    SELECT r.rolname::text AS role, g.oid AS grantee
    FROM pg_roles AS r, (SELECT oid FROM pg_roles UNION ALL SELECT 0) AS g
    WHERE r.rolname::text = ANY ($1) AND NOT r.rolsuper
      AND CASE g.oid WHEN 0 THEN true ELSE pg_has_role(r.oid, g.oid, 'USAGE') END
), spaces AS (
    SELECT oid, nspname, nspowner, nspacl FROM pg_namespace
    WHERE nspname NOT LIKE 'pg\_%' AND nspname NOT IN ('information_schema', 'credit_migration')
), relations AS (
    SELECT c.oid, CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
           format('%I.%I', n.nspname, c.relname) AS name,
           coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)) AS acl
    FROM pg_class AS c JOIN spaces AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'
), acls AS (
    SELECT kind, name, '' AS column_name, acl FROM relations
    UNION ALL
    SELECT r.kind, r.name, a.attname::text, a.attacl FROM relations AS r JOIN pg_attribute AS a ON a.attrelid = r.oid
    WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
    UNION ALL
    SELECT 'SCHEMA', quote_ident(nspname), '', coalesce(nspacl, acldefault('n', nspowner)) FROM spaces
)
SELECT DISTINCT g.role, kind, name, column_name, item.privilege_type
FROM acls, aclexplode(acl) AS item JOIN grantees AS g ON g.grantee = item.grantee"#;

/// Of such rights those that a role does not have, although object and column are there. The functions are NULL for
/// what is gone.
const MISSING: &str = "
SELECT quote_ident(u.role), u.kind || ' ' || u.name,
       u.privilege || CASE u.col WHEN '' THEN '' ELSE format(' (%I)', u.col) END
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS u (role, kind, name, col, privilege)
LEFT JOIN pg_class AS c ON u.kind <> 'SCHEMA' AND c.oid = to_regclass(u.name)
     AND (c.relkind = 'S') = (u.kind = 'SEQUENCE')
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname::text = u.col AND NOT a.attisdropped
WHERE NOT CASE WHEN u.kind = 'SCHEMA' THEN has_schema_privilege(u.role::name, to_regnamespace(u.name), u.privilege)
               WHEN u.kind = 'SEQUENCE' THEN has_sequence_privilege(u.role::name, c.oid, u.privilege)
               WHEN u.col = '' THEN has_table_privilege(u.role::name, c.oid, u.privilege)
               ELSE has_column_privilege(u.role::name, c.oid, a.attnum, u.privilege) END";

/// The rights of the application's roles at one moment: role, kind, name, column, privilege.
pub(super) struct Rights(BTreeSet<[String; 5]>);

impl Rights {
    /// Reads them.
    ///
    /// # Errors
    /// Database errors.
    pub(super) async fn read(tx: &Transaction<'_>, spec: &ControlSpec) -> Result<Self, Failure> {
        // Compiling the query would take longer than the query, while writes are blocked.
        tx.batch_execute("SAVEPOINT rights; SET LOCAL jit = off").await?;
        let rows = tx.query(RIGHTS, &[&spec.application_roles]).await?;
        tx.batch_execute("ROLLBACK TO SAVEPOINT rights; RELEASE SAVEPOINT rights").await?;
        Ok(Self(rows.iter().map(|row| [0, 1, 2, 3, 4].map(|column| row.get(column))).collect()))
    }

    /// Those of them that are no more, on objects and columns that are there.
    ///
    /// # Errors
    /// Database errors.
    pub(super) async fn lost(&self, tx: &Transaction<'_>, spec: &ControlSpec) -> Result<Vec<LostRight>, Failure> {
        let now = Self::read(tx, spec).await?;
        // A role may still have them by another way: the right on the table in place of that on its columns, a
        // predefined role.
        let gone: Vec<&[String; 5]> = self.0.difference(&now.0).collect();
        let [roles, kinds, names, columns, privileges] =
            [0, 1, 2, 3, 4].map(|n| gone.iter().map(|right| right[n].as_str()).collect::<Vec<&str>>());
        let rows = tx.query(MISSING, &[&roles, &kinds, &names, &columns, &privileges]).await?;
        Ok(grouped(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2)))))
    }
}

/// Role, object and privilege: one entry for each role and object.
fn grouped(rights: impl Iterator<Item = (String, String, String)>) -> Vec<LostRight> {
    let mut found: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (role, object, privilege) in rights {
        found.entry((object, role)).or_default().insert(privilege);
    }
    let entry = |((object, role), privileges): ((String, String), BTreeSet<String>)| LostRight {
        role,
        object,
        privileges: privileges.into_iter().collect(),
    };
    found.into_iter().map(entry).collect()
}

/// Of `lost` what is not approved.
fn not_approved(lost: &[LostRight], approved: &[LostRight]) -> Vec<LostRight> {
    let is_approved = |of: &LostRight, privilege: &String| {
        approved.iter().any(|a| (&a.role, &a.object) == (&of.role, &of.object) && a.privileges.contains(privilege))
    };
    let rest = lost.iter().map(|of| LostRight {
        privileges: of.privileges.iter().filter(|privilege| !is_approved(of, privilege)).cloned().collect(),
        ..of.clone()
    });
    rest.filter(|of| !of.privileges.is_empty()).collect()
}

/// In the window: an error if a right is lost that the rehearsal did not show, and that no one has approved.
///
/// # Errors
/// `RightsLost`.
pub(super) fn require_approved(lost: &[LostRight], approved: &[LostRight]) -> Result<(), Failure> {
    let rest = not_approved(lost, approved);
    match rest.is_empty() {
        true => Ok(()),
        false => Err(failure(&rest, "that the rehearsal did not show, limit 0")),
    }
}

/// In the rehearsal: an error if more rights are lost than people can be asked about.
///
/// # Errors
/// `RightsLost`.
pub(super) fn require_few(lost: &[LostRight]) -> Result<(), Failure> {
    match LostRight::count(lost) <= MAX_LOST_RIGHTS {
        true => Ok(()),
        false => Err(failure(lost, &format!("limit {MAX_LOST_RIGHTS}"))),
    }
}

fn failure(lost: &[LostRight], limit: &str) -> Failure {
    let message = format!(
        "the up SQL takes {} rights from roles of the application {limit}; next: add to it {}",
        LostRight::count(lost),
        LostRight::grants(lost)
    );
    Failure::new(Reason::RightsLost, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(object: &str, privileges: &[&str]) -> LostRight {
        LostRight {
            role: "app".into(),
            object: object.into(),
            privileges: privileges.iter().map(|p| (*p).to_owned()).collect(),
        }
    }

    #[test]
    fn what_was_approved_may_be_lost_and_nothing_else() {
        let lost = [right("TABLE public.a", &["INSERT", "SELECT"]), right("TABLE public.b", &["SELECT"])];
        assert_eq!(require_approved(&lost, &lost), Ok(()));
        // Fewer than approved are lost.
        assert_eq!(require_approved(&lost[..1], &lost), Ok(()));
        let failure = require_approved(&lost, &[right("TABLE public.a", &["SELECT"])]).unwrap_err();
        assert_eq!(
            failure.message,
            "the up SQL takes 2 rights from roles of the application that the rehearsal did not show, limit 0; next: \
             add to it GRANT INSERT ON TABLE public.a TO app; GRANT SELECT ON TABLE public.b TO app;"
        );
    }

    #[test]
    fn more_rights_than_people_can_judge_are_refused() {
        let lost: Vec<LostRight> = (0..=MAX_LOST_RIGHTS).map(|n| right(&format!("TABLE a{n}"), &["SELECT"])).collect();
        assert_eq!(require_few(&lost[1..]), Ok(()));
        let failure = require_few(&lost).unwrap_err();
        assert_eq!(failure.reason, Reason::RightsLost);
        assert!(failure.message.ends_with("GRANT SELECT ON TABLE a9 TO app; and 491 more"), "{failure}");
    }
}
