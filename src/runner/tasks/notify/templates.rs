//! From a notice to the text for one audience: `MiniJinja` templates of a `ConfigMap`, defaults for what it leaves out.
//!
//! # Contract
//! - A template that cannot be rendered, or gives nothing, is replaced by the default, and reported: an alert must not
//!   be lost because of a template.
//! - Users, Social and StatusPage get no internals: their templates know nothing but `occasion`, `audience`, `at`,
//!   `startsAt` and `expectedWindowSeconds`. A template that asks for more does not render for them.
//! - Team and Support also know `message`, `migration`, `namespace`, `phase`, `reportObject` and `contacts` (`role`,
//!   `name`, `phone`, `duty`; empty but in alerts). In an alert a contact whose phone number the text lacks is added at
//!   its end.
//! - What a notice does not have (`startsAt`, `expectedWindowSeconds`, `reportObject`) is false in `{% if %}` and
//!   cannot be printed. What no notice has is an error everywhere.
//! - Filters: `time` (`startsAt|time`, `startsAt|time("Europe/Berlin")`), `duration`
//!   (`expectedWindowSeconds|duration`).

use std::collections::BTreeMap;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context};

use super::defaults;
use crate::{
    api::{Audience, Contact, ContactRole, Notice, NoticePart, Occasion, is_template_key},
    shared::quoted::Quoted,
};

/// Longest subject and body, in characters: Slack and mail servers refuse much longer ones.
const MAX_NOTICE_LENGTHS: (usize, usize) = (200, 20_000);
/// Steps that a template may take; one that loops for long must not delay an alert.
const NOTICE_TEMPLATE_FUEL: u64 = 100_000;

/// Whether an audience may see internals and contacts.
pub(super) fn is_internal(audience: Audience) -> bool {
    match audience {
        Audience::Team | Audience::Support => true,
        Audience::Users | Audience::Social | Audience::StatusPage => false,
    }
}

/// What is rendered, in addition to the notice itself.
#[derive(Clone, Copy)]
pub(super) struct NoticeContext<'a> {
    pub migration: &'a str,
    pub namespace: &'a str,
    pub contacts: &'a [Contact],
}

impl<'a> NoticeContext<'a> {
    /// The contacts that may be in a notice to this audience.
    pub(super) fn contacts_for(&self, occasion: Occasion, audience: Audience) -> &'a [Contact] {
        if occasion.is_alert() && is_internal(audience) { self.contacts } else { &[] }
    }
}

/// A rendered notice.
#[derive(Debug)]
pub(super) struct RenderedNotice {
    /// One line.
    pub subject: String,
    pub body: String,
    /// Templates that could not be used, and why.
    pub unusable: Vec<String>,
}

/// Templates by key: those of the `ConfigMap`, otherwise the defaults.
pub(super) struct Templates {
    own: BTreeMap<String, String>,
}

impl Templates {
    /// `own` holds the keys and texts of the `ConfigMap`.
    pub(super) fn new(own: BTreeMap<String, String>) -> Self {
        Self { own }
    }

    /// The text of a notice for one audience.
    pub(super) fn render(
        &self,
        notice: &Notice,
        audience: Audience,
        notice_context: NoticeContext<'_>,
    ) -> RenderedNotice {
        let mut unusable = Vec::new();
        let mut part = |part| {
            if let Some((key, source)) = self.own(notice.occasion, audience, part) {
                match render(key, source, notice, audience, notice_context) {
                    Ok(text) => return text,
                    Err(why) => unusable.push(format!("template {key}: {why}; the default was used")),
                }
            }
            let source = defaults::template(notice.occasion, audience, part);
            // The defaults are tried with each occasion and audience by the tests; should one fail all the same, the
            // facts go out.
            render(part.as_str(), source, notice, audience, notice_context).unwrap_or_else(|why| {
                unusable.push(format!("default {}: {why}", part.as_str()));
                if is_internal(audience) { notice.message.clone() } else { "News of our credits".to_owned() }
            })
        };
        let subject = part(NoticePart::Subject).split_whitespace().collect::<Vec<_>>().join(" ");
        let mut body = cut(&part(NoticePart::Body), MAX_NOTICE_LENGTHS.1);
        let missing: Vec<String> = notice_context
            .contacts_for(notice.occasion, audience)
            .iter()
            .filter(|contact| !body.contains(&contact.phone))
            .map(|Contact { role, name, phone, duty }| format!("- {}: {name}, {phone} ({duty})", role_name(*role)))
            .collect();
        if !missing.is_empty() {
            body = format!("{body}\n\nWhom to call:\n{}", missing.join("\n"));
        }
        RenderedNotice { subject: cut(&subject, MAX_NOTICE_LENGTHS.0), body, unusable }
    }

    fn own(&self, occasion: Occasion, audience: Audience, part: NoticePart) -> Option<(&str, &str)> {
        let part = part.as_str();
        [format!("{occasion}.{audience}.{part}"), format!("{occasion}.{part}")]
            .iter()
            .find_map(|key| self.own.get_key_value(key))
            .map(|(key, source)| (key.as_str(), source.as_str()))
    }

    /// What is wrong with the `ConfigMap`: keys that name no template, templates that cannot be parsed, or cannot be
    /// rendered for one of `audiences`.
    pub(super) fn problems(&self, audiences: &[Audience], notice_context: NoticeContext<'_>) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, source) in &self.own {
            if !is_template_key(key) {
                problems.push(format!("{key} names no template; keys are OCCASION[.AUDIENCE].subject and .body"));
            } else if let Err(why) = environment().template_from_named_str(key, source) {
                problems.push(format!("{key}: {why}"));
            } else if let Some(why) = self.first_problem(key, audiences, notice_context) {
                problems.push(format!("{key}: {why}"));
            }
        }
        problems
    }

    fn first_problem(&self, key: &str, audiences: &[Audience], notice_context: NoticeContext<'_>) -> Option<String> {
        for &occasion in Occasion::ALL {
            for audience in occasion.audiences().iter().copied().filter(|a| audiences.contains(a)) {
                for part in NoticePart::ALL.iter().copied() {
                    let Some((found, source)) = self.own(occasion, audience, part).filter(|(found, _)| *found == key)
                    else {
                        continue;
                    };
                    for notice in samples(occasion) {
                        if let Err(why) = render(found, source, &notice, audience, notice_context) {
                            return Some(format!("for {audience}: {why}"));
                        }
                    }
                }
            }
        }
        None
    }
}

/// Notices as the controller makes them: with all that an occasion may have, and with no more than it always has.
pub(super) fn samples(occasion: Occasion) -> [Notice; 2] {
    let full = Notice {
        id: "sample".to_owned(),
        occasion,
        at: crate::api::Time::UNIX_EPOCH,
        message: "what has happened; next: kubectl get cmig".to_owned(),
        phase: crate::api::Phase::Monitoring,
        starts_at: Some(crate::api::Time::UNIX_EPOCH),
        expected_window_seconds: Some(42),
        report_object: Some("s3://bucket/report.json".to_owned()),
        delivered: vec![],
    };
    let mut bare = Notice { report_object: None, ..full.clone() };
    if occasion != Occasion::MaintenanceStarts {
        (bare.starts_at, bare.expected_window_seconds) = (None, None);
    }
    [full, bare]
}

fn render(
    key: &str,
    source: &str,
    notice: &Notice,
    audience: Audience,
    notice_context: NoticeContext<'_>,
) -> Result<String, String> {
    let rendered = environment().render_named_str(key, source, values(notice, audience, notice_context));
    let text = rendered.map_err(|error| error.to_string())?;
    match text.trim() {
        "" => Err("it renders to nothing".to_owned()),
        text => Ok(text.to_owned()),
    }
}

fn values(notice: &Notice, audience: Audience, notice_context: NoticeContext<'_>) -> Value {
    let time = |time: crate::api::Time| time.to_string();
    let public = context! {
        occasion => notice.occasion.as_str(),
        audience => audience.as_str(),
        at => time(notice.at),
        startsAt => notice.starts_at.map(time),
        expectedWindowSeconds => notice.expected_window_seconds,
    };
    if !is_internal(audience) {
        return public;
    }
    let contacts = notice_context.contacts_for(notice.occasion, audience).iter().map(|contact| {
        let Contact { role, name, phone, duty } = contact;
        context! { role => role_name(*role), name => name, phone => phone, duty => duty }
    });
    context! {
        message => notice.message,
        migration => notice_context.migration,
        namespace => notice_context.namespace,
        phase => notice.phase.as_str(),
        reportObject => notice.report_object,
        contacts => contacts.collect::<Vec<_>>(),
        ..public
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(NOTICE_TEMPLATE_FUEL));
    environment.add_filter("time", format_time);
    environment.add_filter("duration", format_duration);
    environment.set_formatter(|out, state, value| {
        // "Maintenance starts none" is worse than the default.
        if value.is_none() {
            return Err(Error::new(ErrorKind::UndefinedError, "this notice does not have it; write {% if ... %}"));
        }
        minijinja::escape_formatter(out, state, value)
    });
    environment
}

/// `2026-11-26 22:00 UTC`, or in the zone of an IANA name.
fn format_time(time: &str, zone: Option<&str>) -> Result<String, Error> {
    let wrong = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    let time: crate::api::Time = time.parse().map_err(|_| wrong("time: not an RFC 3339 time".to_owned()))?;
    let Some(zone) = zone else { return Ok(time.strftime("%Y-%m-%d %H:%M UTC").to_string()) };
    let zoned = time.in_tz(zone).map_err(|_| wrong(format!("time: {} is no IANA time zone", Quoted(zone))))?;
    Ok(zoned.strftime("%Y-%m-%d %H:%M %Z").to_string())
}

/// As text, in full minutes, rounded up.
fn format_duration(seconds: u64) -> String {
    match seconds {
        0..=60 => "about a minute".to_owned(),
        61..=7200 => format!("about {} minutes", seconds.div_ceil(60)),
        _ => format!("about {} hours", seconds.div_ceil(3600)),
    }
}

fn role_name(role: ContactRole) -> &'static str {
    match role {
        ContactRole::Dba => "DBA",
        ContactRole::BackendLead => "Backend lead",
        ContactRole::DevOps => "DevOps",
        ContactRole::ProductManager => "Product manager",
        ContactRole::Cto => "CTO",
    }
}

fn cut(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(longest - 1).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTACT_WORDS: [&str; 3] = ["Ada Example", "+49 30 000000", "restores"];

    fn contacts() -> Vec<Contact> {
        let [name, phone, duty] = CONTACT_WORDS.map(str::to_owned);
        vec![Contact { role: ContactRole::Dba, name, phone, duty }]
    }

    fn notice_context(contacts: &[Contact]) -> NoticeContext<'_> {
        NoticeContext { migration: "simplify-credits", namespace: "shop", contacts }
    }

    fn templates(own: &[(&str, &str)]) -> Templates {
        Templates::new(own.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect())
    }

    fn each() -> impl Iterator<Item = (Notice, Audience)> {
        Occasion::ALL.iter().flat_map(|&occasion| {
            let audiences = occasion.audiences().iter().copied();
            audiences.flat_map(move |audience| samples(occasion).map(|notice| (notice, audience)))
        })
    }

    #[test]
    fn defaults_render_for_each_occasion_and_audience() {
        let (contacts, mut seen) = (contacts(), 0);
        for (notice, audience) in each() {
            let text = templates(&[]).render(&notice, audience, notice_context(&contacts));
            let at = format!("{:?} {audience:?}: {text:?}", notice.occasion);
            assert_eq!(text.unusable, Vec::<String>::new(), "{at}");
            assert!(text.subject.len() > 8 && text.body.len() > 20, "{at}");
            let named = CONTACT_WORDS.iter().filter(|word| text.body.contains(**word)).count();
            let alert = notice.occasion.is_alert() && is_internal(audience);
            assert_eq!(named, if alert { 3 } else { 0 }, "{at}");
            if is_internal(audience) {
                for fact in [&notice.message, "shop/simplify-credits", "Monitoring", "next: kubectl -n shop"] {
                    assert!(text.body.contains(fact), "{fact} is not in {at}");
                }
                assert_eq!(text.body.contains("s3://"), notice.report_object.is_some(), "{at}");
            } else {
                let all = format!("{} {}", text.subject, text.body).to_lowercase();
                for internal in [
                    "simplify",
                    "shop",
                    "kubectl",
                    "what has happened",
                    "s3:",
                    "sql",
                    "database",
                    "monitoring",
                    "rollback",
                    "version",
                    "migrat",
                    "alert",
                    "+49",
                ] {
                    assert!(!all.contains(internal), "{internal} is in {at}");
                }
            }
            if notice.occasion == Occasion::MaintenanceStarts {
                let body = text.body.as_str();
                assert!(body.contains("1970-01-01 00:00 UTC"), "{at}");
                assert!(body.contains("about a minute") || body.contains("42 s"), "{at}");
            }
            if notice.occasion == Occasion::CalledOff && notice.starts_at.is_some() {
                let all = format!("{} {}", text.subject, text.body);
                assert!(all.contains("1970-01-01 00:00 UTC"), "{at} does not say which maintenance: {all}");
            }
            seen += 1;
        }
        assert_eq!(seen, 62, "2 samples of 4 occasions for 5 audiences, of 3 for 2, of 5 for 1");
    }

    #[test]
    fn the_most_specific_template_wins() {
        let own = templates(&[
            ("Finished.subject", "general {{ audience }}"),
            ("Finished.Users.subject", "users"),
            ("Finished.Users.body", "on {{ at|time('Europe/Berlin') }}"),
        ]);
        let [notice, _] = samples(Occasion::Finished);
        let users = own.render(&notice, Audience::Users, notice_context(&[]));
        assert_eq!((users.subject.as_str(), users.body.as_str()), ("users", "on 1970-01-01 01:00 CET"));
        let team = own.render(&notice, Audience::Team, notice_context(&[]));
        assert_eq!(team.subject, "general Team");
        assert!(team.body.contains("describe cmig"), "{team:?}");
        assert_eq!(
            own.problems(&[Audience::Team, Audience::Users, Audience::Social], notice_context(&[])),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_cannot_be_rendered_is_found_and_replaced_by_the_default() {
        for (source, why) in [
            ("{{ mesage }}", "undefined"),
            ("{% if mesage %}x{% endif %}", "undefined"),
            ("{{ message", "syntax error"),
            ("{{ startsAt }}", "does not have it"),
            ("{{ message|shout }}", "unknown filter"),
            ("{{ message|time }}", "not an RFC 3339 time"),
            ("{{ at|time('Mars/Olympus') }}", "no IANA time zone"),
            ("  \n", "renders to nothing"),
            ("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", "fuel"),
        ] {
            let own = templates(&[("ManualInterventionRequired.body", source)]);
            let problems = own.problems(&[Audience::Team], notice_context(&[]));
            assert!(
                problems.len() == 1 && problems[0].starts_with("ManualInterventionRequired.body: "),
                "{source}: {problems:?}"
            );
            assert!(problems[0].contains(why), "{source}: {problems:?}");
            let [_, bare] = samples(Occasion::ManualInterventionRequired);
            let contacts = contacts();
            let text = own.render(&bare, Audience::Team, notice_context(&contacts));
            assert!(text.body.contains(&bare.message) && text.body.contains("+49 30 000000"), "{text:?}");
            assert!(text.unusable.len() == 1 && text.unusable[0].contains(why), "{text:?}");
        }
    }

    #[test]
    fn internals_do_not_reach_the_public_by_a_general_template() {
        for source in ["{{ message }}", "{{ migration }}", "{{ contacts[0].phone }}", "{{ reportObject or 'x' }}"] {
            let own = templates(&[("RolledBack.body", source)]);
            let problems = own.problems(&[Audience::Team, Audience::StatusPage], notice_context(&[]));
            assert!(
                problems.iter().any(|p| p.contains("undefined") || p.contains("StatusPage")),
                "{source}: {problems:?}"
            );
            let [notice, _] = samples(Occasion::RolledBack);
            let contacts = contacts();
            let text = own.render(&notice, Audience::Users, notice_context(&contacts));
            assert!(!text.body.contains("kubectl") && !text.body.contains("+49"), "{text:?}");
        }
        let own =
            templates(&[("RolledBack.body", "{% if audience == 'Team' %}{{ message }}{% else %}over{% endif %}")]);
        assert_eq!(own.problems(&[Audience::Team, Audience::Users], notice_context(&[])), Vec::<String>::new());
    }

    #[test]
    fn keys_that_no_notice_would_use_are_found() {
        for key in [
            "Finshed.body",
            "Finished.Users.text",
            "Finished.Everybody.body",
            "DayReport.Users.body",
            "README",
            "a.b.c.d",
        ] {
            let problems = templates(&[(key, "x")]).problems(&[Audience::Team], notice_context(&[]));
            assert!(problems.len() == 1 && problems[0].contains("names no template"), "{problems:?}");
        }
    }

    #[test]
    fn a_subject_is_one_line_and_lengths_have_limits() {
        let long = "x".repeat(30_000);
        let own = templates(&[("Finished.subject", "a\nBcc: b"), ("Finished.body", &long)]);
        let [notice, _] = samples(Occasion::Finished);
        let text = own.render(&notice, Audience::Team, notice_context(&[]));
        assert_eq!((text.subject.as_str(), text.body.chars().count()), ("a Bcc: b", 20_000));
        for (seconds, text) in [(1, "about a minute"), (61, "about 2 minutes"), (7201, "about 3 hours")] {
            assert_eq!(format_duration(seconds), text);
        }
    }
}
