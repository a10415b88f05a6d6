//! What the migration role owns on a rehearsal's copy alone. On the database it belongs to a role whose rights the
//! migration role lacks: SQL that alters it passes on the copy, and would fail in the window, or in the rollback.
//!
//! Called by `left_out`, which finds the objects, and by `apply`. Imports `failure` of the runner, `api`.
//!
//! # Contract
//! - Catalogs alone are read, before the SQL and after it, in its transaction. What a role without ownership may do is
//!   no difference: rows, `TRUNCATE`, and with their grants triggers and foreign keys.
//! - What a `DROP ... CASCADE` of other objects has taken is no difference either: no one asks for its owner.
//! - Rights on rows, functions and types that only the owner has are not compared.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Transaction;

use crate::{api::Reason, runner::Failure};

/// Objects that a message names.
const MAX_NAMED: usize = 5;

/// An object of the copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotOwnedObject {
    /// Its catalog.
    pub class: u32,
    /// Its number in the copy.
    pub oid: u32,
    /// What it is, and its quoted name: `table public.audit`.
    pub name: String,
    /// Its owner on the database.
    pub owner: String,
    /// The statement after which the migration role may alter it, if there is one.
    pub fix: Option<String>,
    /// Whether it may be dropped on the database, as the owner of its schema may.
    pub droppable: bool,
    /// Whether the migration role may create triggers on it there.
    pub triggers: bool,
    /// Whether it may refer to it by foreign keys there.
    pub references: bool,
}

/// All such objects, and schemas in which the migration role may create nothing on the database. Empty there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotOwned {
    /// The quoted migration role.
    pub role: String,
    /// The objects.
    pub objects: Vec<NotOwnedObject>,
    /// Quoted names of the schemas.
    pub closed_schemas: Vec<String>,
}

/// Number of an object in the list, and a digest of its catalog rows. `xmin` of a row changes with each change, except
/// that of `pg_class` by `TRUNCATE` and by triggers, and constraints are made again when a column that they refer to
/// gets another type.
const STATE: &str = "
WITH o AS (
    SELECT n::int, class, oid, triggers, refs FROM unnest($1::oid[], $2::oid[], $3::bool[], $4::bool[])
        WITH ORDINALITY AS u (class, oid, triggers, refs, n)
), rel AS (
    SELECT n, oid, triggers, refs FROM o WHERE class = 'pg_class'::regclass
    UNION ALL SELECT n, typrelid, true, true FROM o JOIN pg_type AS t ON class = 'pg_type'::regclass AND t.oid = o.oid
    WHERE typrelid <> 0
), line (n, text) AS (
    SELECT n, ((to_jsonb(c) - ARRAY['relpages', 'reltuples', 'relallvisible', 'relallfrozen', 'relhasindex',
                'relhasrules', 'relhastriggers', 'relhassubclass', 'relfrozenxid', 'relminmxid'])
               - CASE relkind WHEN 'm' THEN '' ELSE 'relfilenode' END)::text
    FROM rel JOIN pg_class AS c ON c.oid = rel.oid
    UNION ALL SELECT n, 'column ' || attnum || ' ' || a.xmin FROM rel JOIN pg_attribute AS a ON attrelid = rel.oid
    UNION ALL SELECT n, 'default ' || d.oid || ' ' || d.xmin FROM rel JOIN pg_attrdef AS d ON adrelid = rel.oid
    UNION ALL SELECT n, 'constraint ' || conname || ' ' || convalidated || pg_get_constraintdef(k.oid)
    FROM rel JOIN pg_constraint AS k ON conrelid = rel.oid
    UNION ALL SELECT n, 'reference ' || conrelid || ' ' || conname
    FROM rel JOIN pg_constraint AS k ON confrelid = rel.oid WHERE NOT refs AND conrelid <> confrelid
    UNION ALL SELECT n, 'index ' || relname || ' ' || i.xmin || ' ' || coalesce(array_to_string(reloptions, ','), '')
    FROM rel JOIN pg_index AS i ON indrelid = rel.oid JOIN pg_class AS c ON c.oid = indexrelid
    UNION ALL SELECT n, 'trigger ' || t.oid || ' ' || t.xmin FROM rel JOIN pg_trigger AS t ON tgrelid = rel.oid
    WHERE NOT (tgisinternal OR triggers)
    UNION ALL SELECT n, 'rule ' || r.oid || ' ' || r.xmin FROM rel JOIN pg_rewrite AS r ON ev_class = rel.oid
    UNION ALL SELECT n, 'policy ' || p.oid || ' ' || p.xmin FROM rel JOIN pg_policy AS p ON polrelid = rel.oid
    UNION ALL SELECT n, 'statistics ' || s.oid || ' ' || s.xmin
    FROM rel JOIN pg_statistic_ext AS s ON stxrelid = rel.oid
    UNION ALL SELECT n, 'parent ' || inhparent || ' ' || inhrelid FROM rel JOIN pg_inherits ON rel.oid = inhrelid
    UNION ALL SELECT n, 'child ' || inhparent || ' ' || inhrelid FROM rel JOIN pg_inherits ON rel.oid = inhparent
    UNION ALL SELECT n, 'sequence ' || s.xmin FROM rel JOIN pg_sequence AS s ON seqrelid = rel.oid
    UNION ALL SELECT n, 'publication ' || p.oid FROM rel JOIN pg_publication_rel AS p ON prrelid = rel.oid
    UNION ALL SELECT n, 'check ' || conname || ' ' || convalidated || pg_get_constraintdef(k.oid)
    FROM o JOIN pg_constraint AS k ON class = 'pg_type'::regclass AND contypid = o.oid
    UNION ALL SELECT n, 'label ' || e.oid || ' ' || e.xmin
    FROM o JOIN pg_enum AS e ON class = 'pg_type'::regclass AND enumtypid = o.oid
    UNION ALL SELECT n, 'comment ' || objsubid || ' ' || d.xmin
    FROM o JOIN pg_description AS d ON d.classoid = class AND d.objoid = o.oid
    UNION ALL SELECT n, 'row ' || r.xmin FROM o JOIN (
        SELECT 'pg_proc'::regclass, oid, xmin FROM pg_proc
        UNION ALL SELECT 'pg_type'::regclass, oid, xmin FROM pg_type
        UNION ALL SELECT 'pg_namespace'::regclass, oid, xmin FROM pg_namespace
        UNION ALL SELECT 'pg_extension'::regclass, oid, xmin FROM pg_extension
        UNION ALL SELECT 'pg_language'::regclass, oid, xmin FROM pg_language
        UNION ALL SELECT 'pg_foreign_server'::regclass, oid, xmin FROM pg_foreign_server
        UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, xmin FROM pg_foreign_data_wrapper
        UNION ALL SELECT 'pg_largeobject'::regclass, oid, xmin FROM pg_largeobject_metadata
        UNION ALL SELECT 'pg_operator'::regclass, oid, xmin FROM pg_operator
        UNION ALL SELECT 'pg_opclass'::regclass, oid, xmin FROM pg_opclass
        UNION ALL SELECT 'pg_opfamily'::regclass, oid, xmin FROM pg_opfamily
        UNION ALL SELECT 'pg_collation'::regclass, oid, xmin FROM pg_collation
        UNION ALL SELECT 'pg_conversion'::regclass, oid, xmin FROM pg_conversion
        UNION ALL SELECT 'pg_ts_dict'::regclass, oid, xmin FROM pg_ts_dict
        UNION ALL SELECT 'pg_ts_config'::regclass, oid, xmin FROM pg_ts_config
        UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, xmin FROM pg_statistic_ext
    ) AS r (class, oid, xmin) ON r.class = o.class AND r.oid = o.oid
)
SELECT n, md5(string_agg(text, E'\\n' ORDER BY text COLLATE \"C\")) FROM line GROUP BY 1";

/// Of each object what it needs, as far as users have made it, and it is no part of the object itself.
const NEEDS: &str = "
WITH o AS (
    SELECT n::int, class, oid FROM unnest($1::oid[], $2::oid[]) WITH ORDINALITY AS u (class, oid, n)
), part AS (
    SELECT n, class, oid FROM o
    UNION SELECT n, classid, objid FROM o JOIN pg_depend ON refclassid = class AND refobjid = oid
    WHERE deptype IN ('a', 'i')
)
SELECT DISTINCT p.n, d.refclassid, d.refobjid, d.refobjsubid FROM part AS p
JOIN pg_depend AS d ON d.classid = p.class AND d.objid = p.oid AND d.refobjid >= 16384
WHERE NOT EXISTS (SELECT FROM part AS q WHERE q.n = p.n AND q.class = d.refclassid AND q.oid = d.refobjid)
  AND EXISTS (SELECT FROM pg_depend AS x WHERE x.classid = d.refclassid AND x.objid = d.refobjid)";

/// Of such needs those that are gone: nothing that lives in a schema is without a dependency.
const GONE: &str = "SELECT DISTINCT n FROM unnest($1::int[], $2::oid[], $3::oid[], $4::int[]) AS u (n, class, oid, col)
    WHERE NOT EXISTS (SELECT FROM pg_depend AS x WHERE x.classid = u.class AND x.objid = u.oid)
       OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = u.oid AND attnum = col AND attisdropped AND col > 0)";

/// What is in the closed schemas: schema, name, and a number unless a change of a column's type makes it again.
const CLOSED: &str = "
WITH s AS (SELECT oid, quote_ident(nspname) AS name FROM pg_namespace WHERE quote_ident(nspname) = ANY ($1))
SELECT s.name, CASE relkind WHEN 'S' THEN 'sequence ' WHEN 'v' THEN 'view ' WHEN 'i' THEN 'index '
                            WHEN 'I' THEN 'index ' WHEN 'c' THEN 'type ' ELSE 'table ' END
       || s.name || '.' || quote_ident(relname), CASE WHEN relkind IN ('i', 'I') THEN 0::oid ELSE c.oid END
FROM pg_class AS c JOIN s ON s.oid = relnamespace WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c', 'i', 'I')
UNION ALL SELECT s.name, 'function ' || p.oid::regprocedure, p.oid FROM pg_proc AS p JOIN s ON s.oid = pronamespace
UNION ALL SELECT s.name, 'type ' || s.name || '.' || quote_ident(typname), t.oid
FROM pg_type AS t JOIN s ON s.oid = typnamespace WHERE typtype IN ('e', 'd', 'r')";

/// The objects before the SQL.
pub(super) struct NotOwnedBefore {
    state: BTreeMap<i32, String>,
    needs: Vec<(i32, [u32; 2], i32)>,
    closed: BTreeSet<(String, String, u32)>,
}

impl NotOwned {
    /// Relations among the objects.
    pub(super) fn relations(&self) -> Vec<u32> {
        const PG_CLASS: u32 = 1259;
        self.objects.iter().filter(|object| object.class == PG_CLASS).map(|object| object.oid).collect()
    }

    fn addresses(&self) -> (Vec<u32>, Vec<u32>) {
        self.objects.iter().map(|object| (object.class, object.oid)).unzip()
    }

    /// Reads what the SQL must leave alone.
    ///
    /// # Errors
    /// Database errors.
    pub(super) async fn before(&self, tx: &Transaction<'_>) -> Result<NotOwnedBefore, Failure> {
        let (classes, oids) = self.addresses();
        let needs = match self.objects.is_empty() {
            true => vec![],
            false => tx.query(NEEDS, &[&classes, &oids]).await?,
        };
        Ok(NotOwnedBefore {
            state: self.state(tx).await?,
            needs: needs.iter().map(|row| (row.get(0), [row.get(1), row.get(2)], row.get(3))).collect(),
            closed: self.closed(tx).await?,
        })
    }

    /// The SQL has left it alone; `sql` names it.
    ///
    /// # Errors
    /// `PrivilegeMissing` with the first objects; database errors.
    pub(super) async fn require_untouched(
        &self,
        tx: &Transaction<'_>,
        before: &NotOwnedBefore,
        sql: &str,
    ) -> Result<(), Failure> {
        let now = self.state(tx).await?;
        let changed = before.needs.iter().filter(|(number, ..)| before.state.get(number) != now.get(number));
        let changed: Vec<_> = changed.collect();
        let taken = match changed.is_empty() {
            true => vec![],
            false => {
                let numbers: Vec<i32> = changed.iter().map(|(number, ..)| *number).collect();
                let [classes, oids] = [0, 1].map(|n| changed.iter().map(|need| need.1[n]).collect::<Vec<u32>>());
                let columns: Vec<i32> = changed.iter().map(|(.., column)| *column).collect();
                tx.query(GONE, &[&numbers, &classes, &oids, &columns]).await?
            }
        };
        let taken: BTreeSet<i32> = taken.iter().map(|row| row.get(0)).collect();
        let mut found = Vec::new();
        let mut fixes = Vec::new();
        for (number, object) in (1..).zip(&self.objects) {
            let (was, is) = (before.state.get(&number), now.get(&number));
            if was == is || taken.contains(&number) || is.is_none() && object.droppable {
                continue;
            }
            let verb = if is.is_none() { "drops" } else { "alters" };
            found.push(format!("{verb} {} of role {}", object.name, object.owner));
            fixes.extend(object.fix.clone());
        }
        for (schema, name, _) in self.closed(tx).await?.difference(&before.closed) {
            found.push(format!("creates {name} in schema {schema}"));
            fixes.push(format!("GRANT CREATE ON SCHEMA {schema} TO {};", self.role));
        }
        if found.is_empty() {
            return Ok(());
        }
        fixes.dedup();
        let more = found.len().saturating_sub(MAX_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named: Vec<String> = found.into_iter().take(MAX_NAMED).collect();
        let mut next = vec!["take that out of the SQL".to_owned()];
        next.extend(fixes.into_iter().take(MAX_NAMED));
        let message = format!(
            "the {sql} SQL {}{more}; role {} may do that on the copy, and not on the database; limit 0 objects; \
             next: {}",
            named.join(", "),
            self.role,
            next.join(", or ")
        );
        Err(Failure::new(Reason::PrivilegeMissing, message))
    }

    async fn state(&self, tx: &Transaction<'_>) -> Result<BTreeMap<i32, String>, Failure> {
        if self.objects.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (classes, oids) = self.addresses();
        let triggers: Vec<bool> = self.objects.iter().map(|object| object.triggers).collect();
        let references: Vec<bool> = self.objects.iter().map(|object| object.references).collect();
        let rows = tx.query(STATE, &[&classes, &oids, &triggers, &references]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    async fn closed(&self, tx: &Transaction<'_>) -> Result<BTreeSet<(String, String, u32)>, Failure> {
        if self.closed_schemas.is_empty() {
            return Ok(BTreeSet::new());
        }
        let rows = tx.query(CLOSED, &[&self.closed_schemas]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
    }
}
