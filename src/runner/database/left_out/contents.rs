//! The table of contents of an archive, without what a copy goes without. Pure.
//!
//! ```text
//!  235; 1255 16466 FUNCTION public cf(integer) postgres        dump id; catalog, number, kind, schema, name, owner
//!  3402; 0 0 COMMENT public FUNCTION cf(a integer) postgres    what is attached has neither catalog nor number
//!  3294; 0 0 ACL - LARGE OBJECTS 5001..5003 postgres           large objects of one owner with the same grants
//! ```
//! What has a number is found by it, whatever its name; what is attached is found by the names of what it belongs to.

use std::collections::HashSet;

use super::{Facts, Fate, Object};
use crate::api::LeftOutKind;

/// Kinds of entries that say in their name of which kind is what they belong to.
const ATTACHED: [&str; 3] = ["ACL", "COMMENT", "SECURITY LABEL"];
/// Kinds of entries that have the name of what they belong to.
const NAMED_ALIKE: [&str; 4] = ["SEQUENCE SET", "SEQUENCE OWNED BY", "TABLE ATTACH", "INDEX ATTACH"];

/// The table of contents without these objects and what is attached to them. Comments of the list stay.
pub fn without(list: &str, facts: &Facts) -> String {
    let left_out = Entries::of(facts);
    list.lines().filter(|line| !left_out.have(line)).fold(String::new(), |text, line| text + line + "\n")
}

/// Entries that are left out.
#[derive(Default)]
struct Entries {
    /// Catalog and number.
    objects: HashSet<(u32, u32)>,
    /// Numbers of relations: what holds their rows has no catalog.
    rows: HashSet<u32>,
    /// Whole texts.
    texts: HashSet<String>,
    /// Beginnings of texts: of columns.
    columns: Vec<String>,
    /// Ends of texts: of the users of a foreign server.
    mappings: Vec<String>,
    /// Numbers of large objects whose grants are left out.
    large_objects: HashSet<u32>,
}

impl Entries {
    fn of(facts: &Facts) -> Self {
        let mut entries = Self::default();
        for object in facts.objects() {
            match object.fate {
                Fate::LeftOut(LeftOutKind::Owner | LeftOutKind::SecurityLabel) | Fate::Given => {}
                Fate::LeftOut(LeftOutKind::Grant) | Fate::Granted => entries.add_attached(object, &["ACL"]),
                Fate::LeftOut(
                    LeftOutKind::Extension
                    | LeftOutKind::Superuser
                    | LeftOutKind::Dependent
                    | LeftOutKind::DefaultPrivileges
                    | LeftOutKind::Publication,
                )
                | Fate::Member => entries.add(object),
            }
        }
        entries
    }

    fn add(&mut self, object: &Object) {
        self.objects.insert((object.class, object.oid));
        self.add_attached(object, &ATTACHED);
        let (schema, owner) = (&object.schema, object.owner.as_deref().unwrap_or_default());
        if object.class == PG_CLASS {
            self.rows.insert(object.oid);
        }
        for tag in &object.tags {
            for kind in NAMED_ALIKE {
                self.texts.insert(format!("{kind} {schema} {tag} {owner}"));
            }
            for kind in ATTACHED {
                self.columns.push(format!("{kind} {schema} COLUMN {tag}."));
            }
            if object.kind == "server" {
                self.mappings.push(format!(" SERVER {tag} {owner}"));
            }
        }
    }

    fn add_attached(&mut self, object: &Object, kinds: &[&str]) {
        let (schema, owner) = (&object.schema, object.owner.as_deref().unwrap_or_default());
        let own = object.kind.to_uppercase();
        if object.class == PG_LARGEOBJECT {
            self.large_objects.insert(object.oid);
        }
        // Grants name views as tables and aggregates as functions; both name domains and servers in their own way.
        let words = [own.as_str(), "TABLE", "FUNCTION", "DOMAIN", "FOREIGN SERVER", "FOREIGN DATA WRAPPER", "COLUMN"];
        for (kind, word) in kinds.iter().flat_map(|kind| words.map(|word| (kind, word))) {
            self.texts.extend(object.tags.iter().map(|tag| format!("{kind} {schema} {word} {tag} {owner}")));
        }
    }

    /// Whether the entry of a line is left out.
    fn have(&self, line: &str) -> bool {
        let Some((class, oid, text)) = entry(line) else { return false };
        if class > 0 {
            return self.objects.contains(&(class, oid));
        }
        self.rows.contains(&oid)
            || self.texts.contains(text)
            || text.starts_with("USER MAPPING ") && self.mappings.iter().any(|end| text.ends_with(end))
            || first_large_object(text).is_some_and(|first| self.large_objects.contains(&first))
            || text.contains(" COLUMN ") && self.columns.iter().any(|start| text.starts_with(start))
    }
}

/// Numbers of the catalogs `pg_class` and `pg_largeobject`, the same in all versions.
const PG_CLASS: u32 = 1259;
const PG_LARGEOBJECT: u32 = 2613;

/// The first large object of an entry with the grants of several: all have the same, and so the same fate.
fn first_large_object(text: &str) -> Option<u32> {
    text.strip_prefix("ACL - LARGE OBJECTS ")?.split_once("..")?.0.parse().ok()
}

/// Catalog, number, and the rest of an entry; `None` for a comment of the list.
fn entry(line: &str) -> Option<(u32, u32, &str)> {
    let (id, rest) = line.split_once("; ")?;
    id.parse::<u32>().ok()?;
    let (class, rest) = rest.split_once(' ')?;
    let (oid, text) = rest.split_once(' ')?;
    Some((class.parse().ok()?, oid.parse().ok()?, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(fate: Fate, class: u32, oid: u32, kind: &str, schema: &str, tags: &[&str], owner: &str) -> Object {
        Object {
            fate,
            class,
            oid,
            shown: true,
            needed: false,
            kind: kind.to_owned(),
            identity: String::new(),
            schema: schema.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            owner: (!owner.is_empty()).then(|| owner.to_owned()),
            needs: None,
            grants: vec![],
            foreign: None,
        }
    }

    const LIST: &str = ";
; Archive created at 2026-01-02 03:04:05 UTC
;     dbname: shop
2; 3079 16385 EXTENSION - uuid-ossp 
10; 0 0 COMMENT - EXTENSION \"uuid-ossp\" 
11; 0 0 ACL public FUNCTION uuid_nil() postgres
12; 1259 16400 TABLE public EXTENSION postgres
13; 0 16400 TABLE DATA public EXTENSION postgres
14; 1259 16401 TABLE public config postgres
15; 0 16401 TABLE DATA public config postgres
16; 0 0 SEQUENCE SET public config_id_seq postgres
17; 0 16401 ROW SECURITY public config postgres
18; 3256 16402 POLICY public config p postgres
19; 0 0 COMMENT public COLUMN config.id postgres
20; 0 0 COMMENT public COLUMN config_other.id postgres
21; 1417 16403 SERVER - far away postgres
22; 0 0 USER MAPPING - USER MAPPING mig SERVER far away postgres
23; 0 0 USER MAPPING - USER MAPPING mig SERVER not far away postgres
24; 0 0 ACL public TABLE config_other mig
25; 0 0 ACL public COLUMN config_other.id mig
26; 0 0 COMMENT public TABLE config_other mig
27; 826 16404 DEFAULT ACL - DEFAULT PRIVILEGES FOR TABLES other
28; 2613 5001 BLOB METADATA - 5001..5003 postgres
29; 0 0 COMMENT - LARGE OBJECT 5001 postgres
30; 0 0 ACL - LARGE OBJECTS 5001..5003 postgres
31; 0 0 ACL - LARGE OBJECT 6000 mig
32; 0 0 BLOBS - 5001..5003 postgres
";

    #[rstest::rstest]
    #[case::nothing(vec![], &[])]
    #[case::an_owner_keeps_nothing_out(
        vec![object(Fate::LeftOut(LeftOutKind::Owner), 1259, 16401, "table", "public", &["config"], "postgres"),
             object(Fate::Given, 1259, 16400, "table", "public", &["\"EXTENSION\""], "postgres")],
        &[]
    )]
    #[case::an_extension_with_its_comment(
        vec![object(Fate::LeftOut(LeftOutKind::Extension), 3079, 16385, "extension", "-", &["\"uuid-ossp\""], "")],
        &[2, 10]
    )]
    #[case::grants_on_a_member(
        vec![object(Fate::Member, 1255, 16500, "function", "public", &["uuid_nil()"], "postgres")],
        &[11]
    )]
    #[case::all_of_a_table(
        vec![object(Fate::Member, 1259, 16401, "table", "public", &["config"], "postgres"),
             object(Fate::Member, 1259, 16405, "sequence", "public", &["config_id_seq"], "postgres"),
             object(Fate::Member, 3256, 16402, "policy", "public", &["p ON config"], "postgres")],
        &[14, 15, 16, 17, 18, 19]
    )]
    #[case::a_server_with_its_users(
        vec![object(Fate::LeftOut(LeftOutKind::Dependent), 1417, 16403, "server", "-", &["far away"], "postgres")],
        &[21, 22]
    )]
    #[case::grants_and_nothing_else(
        vec![object(Fate::LeftOut(LeftOutKind::Grant), 1259, 16406, "table", "public", &["config_other"], "mig")],
        &[24]
    )]
    #[case::grants_on_a_column(
        vec![object(Fate::LeftOut(LeftOutKind::Grant), 1259, 16406, "column", "public", &["config_other.id"], "mig")],
        &[25]
    )]
    #[case::default_privileges(
        vec![object(Fate::LeftOut(LeftOutKind::DefaultPrivileges), 826, 16404, "default acl", "-", &[], "")],
        &[27]
    )]
    #[case::grants_on_large_objects(
        vec![object(Fate::LeftOut(LeftOutKind::Grant), 2613, 5001, "large object", "-", &["5001"], "postgres"),
             object(Fate::LeftOut(LeftOutKind::Grant), 2613, 5002, "large object", "-", &["5002"], "postgres")],
        &[30]
    )]
    #[case::grants_on_one_large_object(
        vec![object(Fate::LeftOut(LeftOutKind::Grant), 2613, 6000, "large object", "-", &["6000"], "mig")],
        &[31]
    )]
    fn is_left_out(#[case] objects: Vec<Object>, #[case] want: &[u32]) {
        let kept = without(LIST, &Facts(objects, vec![]));
        let left: Vec<u32> = LIST
            .lines()
            .filter(|line| !kept.lines().any(|kept| kept == *line))
            .map(|line| line.split(';').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(left, want);
    }
}
