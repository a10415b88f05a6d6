//! What a copy of the database goes without, because the migration role may not restore it: found in the catalogs of
//! the original, before anything is dumped or restored.
//!
//! Called by Preflight and by both rehearsals. Imports `control`, `scratch` and `failure` of the runner, `api`.
//!
//! ```text
//!  facts.sql ── Facts ─┬─ left_out(): evidence, and what Preflight predicts
//!                      ├─ require_restorable(): what the migration needs is there
//!                      ├─ contents::without(): entries of the archive that are restored
//!                      ├─ give(): owners, once all is restored
//!                      └─ not_owned(): what SQL must leave alone, because only the copy lets it
//! ```
//!
//! # Contract
//! - The copy is restored without owners (`pg_restore --no-owner`): all belongs to the migration role, and is given to
//!   its owners afterwards. So an owner that the role may not become keeps nothing from being restored.
//! - What needs an object that is left out is left out, too, by the server's own record of dependencies.

pub mod contents;

use tokio_postgres::{Client, Row, error::SqlState};

use super::{
    control::{NotOwned, NotOwnedObject, ident, oids},
    version::{SET_ROLE_RIGHT, ServerVersion},
};
use crate::{
    api::{LeftOut, LeftOutKind, LeftOutObjects, Reason},
    runner::Failure,
};

/// See the file's head.
const FACTS_SQL: &str = include_str!("facts.sql");

/// Codes of what is not there.
const UNDEFINED: [SqlState; 4] = [
    SqlState::UNDEFINED_TABLE,
    SqlState::UNDEFINED_FUNCTION,
    SqlState::UNDEFINED_OBJECT,
    SqlState::INVALID_SCHEMA_NAME,
];

/// Codes of an extension that is refused.
const REFUSED: [SqlState; 2] = [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::RAISE_EXCEPTION];

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The copy goes without it, or has it in another way.
    LeftOut(LeftOutKind),
    /// As above, as a member of an extension that is left out.
    Member,
    /// It is restored, and then given to its owner.
    Given,
    /// It is restored without its grants, which other roles have made; its owner in the copy makes them.
    Granted,
}

/// An object that is not simply restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What becomes of it.
    pub fate: Fate,
    /// Its catalog.
    pub class: u32,
    /// Its number there.
    pub oid: u32,
    /// Whether it is evidence: parts of another object that is left out are not.
    pub shown: bool,
    /// Whether it is a protected table, or a part of one.
    pub needed: bool,
    /// What it is, as the server says: `materialized view`.
    pub kind: String,
    /// Its quoted name, with schema.
    pub identity: String,
    /// Its schema, `-` for none.
    pub schema: String,
    /// Names under which an archive may list what is attached to it: its comment, its grants.
    pub tags: Vec<String>,
    /// Its owner.
    pub owner: Option<String>,
    /// The object without which it cannot be restored, or the role that granted.
    pub needs: Option<String>,
    /// Statements that make its grants.
    pub grants: Vec<String>,
    /// What is to be known if it belongs to a role whose rights the migration role lacks.
    pub foreign: Option<OtherOwner>,
}

/// An object of a role whose rights the migration role lacks: in the copy it belongs to the migration role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherOwner {
    /// Its address, for `pg_get_object_address`.
    pub names: Vec<String>,
    /// The rest of it.
    pub args: Vec<String>,
    /// Whether the migration role may drop it, as the owner of its schema.
    pub droppable: bool,
    /// Whether it may create triggers on it.
    pub triggers: bool,
    /// Whether it may refer to it by foreign keys.
    pub references: bool,
    /// Whether the owner is a superuser: its rights are not to be given.
    pub superuser: bool,
}

/// All objects of a database that are not simply restored, and quoted names of schemas in which the role may create
/// nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(Vec<Object>, Vec<String>);

/// Schemas in which the current role may create nothing.
const CLOSED_SCHEMAS_SQL: &str = "SELECT quote_ident(nspname) FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND NOT has_schema_privilege(oid, 'CREATE')";

impl Facts {
    /// Reads the database that `client` is connected to, as the role that will restore it. `protected` are tables as
    /// the spec writes them, `refused` are extensions that the role may not create.
    ///
    /// # Errors
    /// Those of a database error.
    pub async fn read(client: &Client, protected: &[String], refused: &[String]) -> Result<Self, Failure> {
        let major = ServerVersion::of(client).await?.major;
        let tables: Vec<u32> = oids(client, protected).await?.into_iter().flatten().collect();
        let query = FACTS_SQL.replace("MAJOR", &major.to_string()).replace("'RIGHT'", SET_ROLE_RIGHT);
        // To compile a query of this size takes seconds, to run it on 3,000 tables a tenth of one.
        client.batch_execute("BEGIN READ ONLY; SET LOCAL search_path = pg_catalog; SET LOCAL jit = off").await?;
        let rows = client.query(&query, &[&tables, &refused]).await;
        let closed = client.query(CLOSED_SCHEMAS_SQL, &[]).await;
        client.batch_execute("ROLLBACK").await?;
        Ok(Self(rows?.iter().filter_map(object).collect(), closed?.iter().map(|row| row.get(0)).collect()))
    }

    /// The objects.
    pub fn objects(&self) -> &[Object] {
        &self.0
    }

    /// Evidence of what the copy goes without; `kept` are further objects that stay with the migration role.
    pub fn left_out(&self, kept: Vec<LeftOut>) -> LeftOutObjects {
        let shown = self.0.iter().filter(|object| object.shown).filter_map(Object::left_out);
        LeftOutObjects::new(shown.chain(kept).collect())
    }

    /// Nothing that the migration needs is left out.
    ///
    /// # Errors
    /// `PrivilegeMissing` with the first such object.
    pub fn require_restorable(&self, role: &str) -> Result<(), Failure> {
        let Some(object) = self.0.iter().find(|object| object.needed && object.shown) else { return Ok(()) };
        let (kind, identity) = (&object.kind, &object.identity);
        let needs = object.needs.as_deref().unwrap_or_default();
        let text = format!(
            "the migration needs {kind} {identity}, which needs {needs}, and role {role} may not create that; next: \
                mark an extension as trusted (trusted = true in its control file on the server), or take {needs} out \
                of the table"
        );
        Err(Failure::new(Reason::PrivilegeMissing, text))
    }

    /// Makes the grants of other roles, and gives what was restored to its owners. Returns what the server refused: it
    /// stays with the migration role.
    ///
    /// # Errors
    /// A lost connection.
    pub async fn give(&self, copy: &Client) -> Result<Vec<LeftOut>, Failure> {
        let mut kept = Vec::new();
        let of = |fate: Fate| self.0.iter().filter(move |object| object.fate == fate);
        // An owner of a table may need the right to create in its schema, and has it as that schema's owner.
        let (schemas, others): (Vec<_>, Vec<_>) = of(Fate::Given).partition(|object| object.kind == "schema");
        let owned = schemas.into_iter().chain(others).map(|object| {
            let statement = object.owner.as_ref().and_then(|owner| object.owner_statement(&ident(owner)));
            (object, LeftOutKind::Owner, statement.unwrap_or_default())
        });
        let granted = of(Fate::Granted).map(|object| (object, LeftOutKind::Grant, object.grants.join("; ")));
        for (object, kind, statement) in granted.chain(owned) {
            if let Err(error) = copy.batch_execute(&statement).await {
                // It is newer than the dump.
                if error.code().is_some_and(|code| UNDEFINED.contains(code)) {
                    continue;
                }
                let error = Failure::from(error);
                if error.is_connection_lost() {
                    return Err(error);
                }
                tracing::warn!(object = object.identity, %kind, %error, "the copy has not all of the object");
                kept.push(object.described(kind));
            }
        }
        Ok(kept)
    }

    /// What `role` owns in the copy alone, once all is given.
    ///
    /// # Errors
    /// A lost connection.
    pub async fn not_owned(&self, copy: &Client, role: &str) -> Result<NotOwned, Failure> {
        let role = ident(role);
        let mut objects = Vec::new();
        for (object, foreign) in self.0.iter().filter_map(|object| Some((object, object.foreign.as_ref()?))) {
            let query = "SELECT classid, objid FROM pg_catalog.pg_get_object_address($1, $2, $3)";
            let row = match copy.query_one(query, &[&object.kind, &foreign.names, &foreign.args]).await {
                Ok(row) => row,
                // It is newer than the dump.
                Err(error) if error.code().is_some_and(|code| UNDEFINED.contains(code)) => continue,
                Err(error) => return Err(error.into()),
            };
            let owner = object.owner.clone().unwrap_or_default();
            let fix = match (foreign.superuser, object.owner_statement(&role)) {
                (false, _) => Some(format!("GRANT {} TO {role};", ident(&owner))),
                (true, statement) => statement.filter(|_| object.kind != "extension").map(|text| text + ";"),
            };
            objects.push(NotOwnedObject {
                class: row.get(0),
                oid: row.get(1),
                name: object.described(LeftOutKind::Owner).name,
                owner,
                fix,
                droppable: foreign.droppable,
                triggers: foreign.triggers,
                references: foreign.references,
            });
        }
        Ok(NotOwned { role, objects, closed_schemas: self.1.clone() })
    }
}

impl Object {
    fn left_out(&self) -> Option<LeftOut> {
        match self.fate {
            Fate::LeftOut(kind) => Some(self.described(kind)),
            Fate::Member | Fate::Given | Fate::Granted => None,
        }
    }

    fn described(&self, kind: LeftOutKind) -> LeftOut {
        let word = match self.kind.as_str() {
            "default acl" => "default privileges",
            "server" => "foreign server",
            word => word,
        };
        let name = format!("{word} {}", self.identity);
        let short = |text: &str| text.chars().take(LeftOut::MAX_CHARACTERS).collect();
        LeftOut { kind, name: short(&name), owner: self.owner.clone(), needs: self.needs.as_deref().map(short) }
    }

    /// Gives it to a role, which is quoted.
    fn owner_statement(&self, role: &str) -> Option<String> {
        let word = match self.kind.as_str() {
            "statistics object" => "STATISTICS".to_owned(),
            "foreign-data wrapper" => "FOREIGN DATA WRAPPER".to_owned(),
            word => word.to_uppercase(),
        };
        self.owner.as_ref().map(|_| format!("ALTER {word} {} OWNER TO {role}", self.identity))
    }
}

/// `None` for a fate that this version does not know: there is none.
fn object(row: &Row) -> Option<Object> {
    let fate = match row.get::<_, &str>(0) {
        "Member" => Fate::Member,
        "Given" => Fate::Given,
        "Granted" => Fate::Granted,
        name => Fate::LeftOut(*LeftOutKind::ALL.iter().find(|kind| kind.as_str() == name)?),
    };
    Some(Object {
        fate,
        class: row.get(1),
        oid: row.get(2),
        shown: row.get(3),
        needed: row.get(4),
        kind: row.get(5),
        identity: row.get(6),
        schema: row.get(7),
        tags: row.get(8),
        owner: row.get(9),
        needs: row.get(10),
        grants: row.get::<_, Option<Vec<String>>>(18).unwrap_or_default(),
        foreign: row.get::<_, bool>(11).then(|| OtherOwner {
            names: row.get(12),
            args: row.get(13),
            droppable: row.get(14),
            triggers: row.get(15),
            references: row.get(16),
            superuser: row.get(17),
        }),
    })
}

/// Extensions of the original that the role may not create, by the catalog. Managed PostgreSQL allows more than it
/// says.
///
/// # Errors
/// Those of a database error.
pub async fn untrusted_extensions(client: &Client) -> Result<Vec<String>, Failure> {
    let query = "SELECT e.extname::text FROM pg_extension AS e
                 JOIN pg_available_extensions AS a ON a.name = e.extname
                 JOIN pg_available_extension_versions AS v ON v.name = a.name AND v.version = a.default_version
                 WHERE v.superuser AND NOT v.trusted AND NOT current_setting('is_superuser')::boolean ORDER BY 1";
    Ok(client.query(query, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// Extensions of `original` that cannot be created in `copy`, by an attempt: the role may not, or the extension's own
/// script says so, as that of one that only one database of the server may have.
///
/// # Errors
/// Those of a database error.
pub async fn refused_extensions(original: &Client, copy: &Client) -> Result<Vec<String>, Failure> {
    let mut refused = Vec::new();
    for row in original.query("SELECT extname::text FROM pg_extension ORDER BY 1", &[]).await? {
        let name: String = row.get(0);
        let create = format!("BEGIN; CREATE EXTENSION IF NOT EXISTS {} CASCADE", ident(&name));
        let created = copy.batch_execute(&create).await;
        copy.batch_execute("ROLLBACK").await?;
        match created {
            Err(error) if error.code().is_some_and(|code| REFUSED.contains(code)) => refused.push(name),
            // Whatever else is wrong pg_restore will say.
            _ => {}
        }
    }
    Ok(refused)
}
