//! What a copy of the database goes without, because the migration role may not restore it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{named::named, sha256};

/// One object of the database that its copy lacks, or has in another way.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    /// Why.
    pub kind: LeftOutKind,
    /// What it is, and its quoted name: `view public.slow`.
    #[schemars(length(max = 512))]
    pub name: String,
    /// Its owner, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub owner: Option<String>,
    /// The object without which it cannot be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub needs: Option<String>,
}

/// Why an object is left out.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeftOutKind {
    /// An extension that the migration role may not create, with its members.
    Extension,
    /// Only a superuser may create it: an event trigger, a function in an untrusted language, a cast.
    Superuser,
    /// It needs an object that is left out.
    Dependent,
    /// Default privileges of a role whose rights the migration role does not have.
    DefaultPrivileges,
    /// Grants that the migration role may not make: on what is not its own, or by a role that is not the owner.
    Grant,
    /// A security label: its provider decides who may set it.
    SecurityLabel,
    /// A publication: a copy must not feed replicas.
    Publication,
    /// It is there, and belongs to the migration role: that may not give it to its owner.
    Owner,
}

named! {
    LeftOutKind: Extension, Superuser, Dependent, DefaultPrivileges, Grant, SecurityLabel, Publication, Owner
}

/// What a copy goes without. Nothing, mostly.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct LeftOutObjects {
    /// What the copy goes without, because the migration role may not restore it; the first 50.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub left_out: Vec<LeftOut>,
    /// How many further objects it goes without.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_left_out: u32,
    /// `sha256:` and 64 hex digits over all of them, if there are more than are named: people approve them, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub left_out_sha256: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl LeftOutObjects {
    /// Objects that a status names.
    const MAX_NAMED: usize = 50;
    /// Objects that one line names.
    const MAX_IN_LINE: usize = 5;

    /// Of all that is left out, in any order.
    pub fn new(mut all: Vec<LeftOut>) -> Self {
        all.sort();
        let more = all.len().saturating_sub(Self::MAX_NAMED);
        let left_out_sha256 = (more > 0).then(|| sha256(serde_json::json!(all).to_string().as_bytes()));
        all.truncate(Self::MAX_NAMED);
        Self { left_out: all, more_left_out: u32::try_from(more).unwrap_or(u32::MAX), left_out_sha256 }
    }

    /// Whether the copy is complete.
    pub fn is_empty(&self) -> bool {
        self.left_out.is_empty()
    }

    /// All of it in one line; `None` if the copy is complete.
    pub fn summary(&self) -> Option<String> {
        let count = self.left_out.len() + usize::try_from(self.more_left_out).unwrap_or(usize::MAX);
        let named: Vec<String> = self.left_out.iter().take(Self::MAX_IN_LINE).map(LeftOut::to_string).collect();
        let more = count.saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (count > 0).then(|| format!("the copy goes without {count} objects: {}{more}", named.join(", ")))
    }

    /// The same as the end of another line.
    pub fn appended(&self) -> String {
        self.summary().map_or_else(String::new, |summary| format!("; {summary}"))
    }
}

impl LeftOut {
    /// Longest name, in characters.
    pub const MAX_CHARACTERS: usize = 512;
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.kind, &self.needs, &self.owner) {
            (kind, Some(needs), _) => write!(f, "{} ({kind}, needs {needs})", self.name),
            (LeftOutKind::Owner, None, Some(owner)) => write!(f, "{} (Owner, {owner})", self.name),
            (kind, None, _) => write!(f, "{} ({kind})", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: LeftOutKind, name: &str) -> LeftOut {
        LeftOut { kind, name: name.to_owned(), owner: None, needs: None }
    }

    #[test]
    fn a_status_names_the_first_and_counts_the_rest() {
        let all = (0..60).map(|n| object(LeftOutKind::Superuser, &format!("event trigger e{n:02}"))).rev().collect();
        let objects = LeftOutObjects::new(all);
        assert_eq!((objects.left_out.len(), objects.more_left_out), (50, 10));
        let summary = objects.summary().unwrap();
        assert!(summary.starts_with("the copy goes without 60 objects: event trigger e00 (Superuser), "), "{summary}");
        assert!(summary.ends_with("event trigger e04 (Superuser) and 55 more"), "{summary}");
    }

    #[test]
    fn what_is_not_named_is_part_of_the_digest() {
        let of = |last: &str| {
            let named = (0..50).map(|n| object(LeftOutKind::Superuser, &format!("event trigger e{n:02}")));
            LeftOutObjects::new(named.chain([object(LeftOutKind::Superuser, last)]).collect())
        };
        assert_ne!(of("event trigger f"), of("event trigger g"));
        assert_eq!(LeftOutObjects::new(vec![object(LeftOutKind::Superuser, "f")]).left_out_sha256, None);
    }

    #[test]
    fn a_line_says_whose_it_is_and_what_it_needs() {
        let owned = LeftOut { owner: Some("postgres".to_owned()), ..object(LeftOutKind::Owner, "table public.audit") };
        let needs = Some("extension postgres_fdw".to_owned());
        let view = LeftOut { needs, ..object(LeftOutKind::Dependent, "view public.slow") };
        let summary = LeftOutObjects::new(vec![owned, view]).summary().unwrap();
        assert!(
            summary.ends_with(
                "view public.slow (Dependent, needs extension postgres_fdw), table public.audit \
                (Owner, postgres)"
            ),
            "{summary}"
        );
    }

    /// Digests of plans that were approved before stay valid.
    #[test]
    fn nothing_left_out_is_not_serialized() {
        let objects = LeftOutObjects::new(vec![]);
        assert_eq!(objects.summary(), None);
        assert_eq!(serde_json::to_value(&objects).unwrap(), serde_json::json!({}));
        assert_eq!(serde_json::from_value::<LeftOutObjects>(serde_json::json!({})).unwrap(), objects);
    }
}
