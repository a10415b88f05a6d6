//! The texts of notices for which the `ConfigMap` has no template.
//!
//! Team and Support get facts and the next command; Users, Social and StatusPage get what they can act on, without a
//! name of the migration, of a system or of a person. The contacts are added to alerts by the renderer, not here.

use crate::api::{Audience, NoticePart, Occasion};

/// What the team can check, for the end of its texts.
macro_rules! facts {
    ($($text:expr),*) => {
        concat!(
            $($text,)*
            "\n\nMigration: {{ namespace }}/{{ migration }}\nPhase: {{ phase }}",
            "{% if startsAt %}\nStart: {{ startsAt|time }}{% endif %}",
            "{% if expectedWindowSeconds %}\nExpected length of the window: {{ expectedWindowSeconds }} s{% endif %}",
            "{% if reportObject %}\nReport: {{ reportObject }}{% endif %}",
            "\nnext: kubectl -n {{ namespace }} describe cmig {{ migration }}"
        )
    };
}

/// What customers have to expect, as a text that fits every audience.
macro_rules! pause {
    () => {
        "buying and using credits will pause{% if expectedWindowSeconds %} for {{ expectedWindowSeconds|duration }}{% \
            endif %}"
    };
}

/// The template of one part of a notice to one audience.
pub(super) fn template(occasion: Occasion, audience: Audience, part: NoticePart) -> &'static str {
    let (subject, body) = match audience {
        Audience::Team => team(occasion),
        Audience::Support => support(occasion),
        Audience::Users => users(occasion),
        Audience::Social => social(occasion),
        Audience::StatusPage => status_page(occasion),
    };
    match part {
        NoticePart::Subject => subject,
        NoticePart::Body => body,
    }
}

fn team(occasion: Occasion) -> (&'static str, &'static str) {
    match occasion {
        Occasion::Planned => (
            "[{{ namespace }}/{{ migration }}] Migration planned{% if startsAt %} for {{ startsAt|time }}{% endif %}",
            facts!("{{ message }}"),
        ),
        Occasion::ApprovalDue => (
            "[{{ namespace }}/{{ migration }}] Approval due",
            facts!("{{ message }}\n\nThe window is not planned before enough people have approved."),
        ),
        Occasion::PresenceDue => (
            "[{{ namespace }}/{{ migration }}] Presence due{% if startsAt %}, start {{ startsAt|time }}{% endif %}",
            facts!("{{ message }}"),
        ),
        Occasion::CalledOff => (
            "[{{ namespace }}/{{ migration }}] Maintenance is called off{% if startsAt %}, planned for {{ \
                startsAt|time }}{% endif %}",
            facts!(
                "{{ message }}\n\nEverybody who got the maintenance notice gets this one. Another start has a \
                notice of its own."
            ),
        ),
        Occasion::MaintenanceStarts => (
            "[{{ namespace }}/{{ migration }}] Maintenance starts{% if startsAt %} {{ startsAt|time }}{% endif %}",
            facts!(
                "{{ message }}\n\nBe there when it starts: it does not start with fewer people present than wanted."
            ),
        ),
        Occasion::Finished => (
            "[{{ namespace }}/{{ migration }}] Migrated: the new version runs, writes are open",
            facts!("{{ message }}"),
        ),
        Occasion::TriggerFired => (
            "[{{ namespace }}/{{ migration }}] ALERT: a trigger fired, rolling back to the old version",
            facts!("{{ message }}"),
        ),
        Occasion::RolledBack => (
            "[{{ namespace }}/{{ migration }}] ALERT: rolled back, the old version runs again",
            facts!("{{ message }}"),
        ),
        Occasion::ManualInterventionRequired => {
            ("[{{ namespace }}/{{ migration }}] ALERT: manual intervention required", facts!("{{ message }}"))
        }
        Occasion::DayReport => ("[{{ namespace }}/{{ migration }}] Report after a day", facts!("{{ message }}")),
        Occasion::WeekReport => ("[{{ namespace }}/{{ migration }}] Report after a week", facts!("{{ message }}")),
        Occasion::DecisionDue => (
            "[{{ namespace }}/{{ migration }}] Decision due: keep the new version, or roll back",
            facts!("{{ message }}\n\nThe new version stays provisional until an approver decides."),
        ),
    }
}

fn support(occasion: Occasion) -> (&'static str, &'static str) {
    match occasion {
        Occasion::Planned => (
            "Credit system: maintenance planned{% if startsAt %} for {{ startsAt|time }}{% endif %}",
            facts!(
                "{{ message }}\n\nWhat customers may ask about: in the maintenance ",
                pause!(),
                ". Balances can be seen all the time. Customers are notified before it starts."
            ),
        ),
        Occasion::MaintenanceStarts => (
            "Credit system: maintenance starts{% if startsAt %} {{ startsAt|time }}{% endif %}",
            facts!(
                "{{ message }}\n\nWhat customers may see: ",
                pause!(),
                "; an attempt is refused and changes nothing. Ask them to retry after the maintenance. You are \
                    notified when it has ended."
            ),
        ),
        Occasion::CalledOff => (
            "Credit system: maintenance is called off{% if startsAt %}, planned for {{ startsAt|time }}{% endif %}",
            facts!(
                "{{ message }}\n\nBuying and using credits works as before. Customers who got the maintenance notice \
                    are told, too."
            ),
        ),
        Occasion::Finished => (
            "Credit system: maintenance has ended",
            facts!(
                "{{ message }}\n\nBuying and using credits works again. Report to the team at once wrong balances, \
                    failed payments, or subscriptions that cannot be changed."
            ),
        ),
        Occasion::TriggerFired => (
            "ALERT: credit system is rolled back to the old version",
            facts!(
                "{{ message }}\n\nWhat customers may see: buying and using credits may be refused until the old \
                    version runs again. You are notified then."
            ),
        ),
        Occasion::RolledBack => (
            "ALERT: credit system runs the old version again",
            facts!("{{ message }}\n\nBuying and using credits works as before the maintenance."),
        ),
        Occasion::ManualInterventionRequired => (
            "ALERT: credit system needs manual intervention",
            facts!(
                "{{ message }}\n\nWhat customers may see: buying and using credits may be refused until the team has \
                    acted. If no one of the team has answered yet, call."
            ),
        ),
        Occasion::ApprovalDue
        | Occasion::PresenceDue
        | Occasion::DayReport
        | Occasion::WeekReport
        | Occasion::DecisionDue => ("Credit system: news of the migration", facts!("{{ message }}")),
    }
}

fn users(occasion: Occasion) -> (&'static str, &'static str) {
    match occasion {
        Occasion::MaintenanceStarts => (
            "Scheduled maintenance{% if startsAt %}: {{ startsAt|time }}{% endif %}",
            concat!(
                "Hello,\n\nwe are about to improve the way credits work. {% if startsAt %}Maintenance starts {{ \
                    startsAt|time }}. {% endif %}During it ",
                pause!(),
                ". You can see your balance all the time, your credits are kept, and there is nothing that you have \
                    to do.\n\nWe will let you know when it is done. Thank you for waiting!"
            ),
        ),
        Occasion::CalledOff => (
            "Maintenance is called off",
            "Hello,\n\nthe maintenance{% if startsAt %} that we planned for {{ startsAt|time }}{% endif %} does not \
                take place: you can buy and use credits as before, and there is nothing that you have to do.\n\nWe \
                will let you know before the next one. Sorry for the trouble!",
        ),
        Occasion::Finished => (
            "Maintenance is done",
            "Hello,\n\nour maintenance is done: you can buy and use credits again.\n\nShould anything seem wrong, \
                please contact our support. Thank you for waiting!",
        ),
        Occasion::RolledBack => (
            "Maintenance has ended",
            "Hello,\n\nour maintenance has ended, and you can buy and use credits as before. We will make the planned \
                improvement another time and let you know beforehand.\n\nShould anything seem wrong, please contact \
                our support. Thank you for waiting!",
        ),
        _ => NOTHING_NEW,
    }
}

fn social(occasion: Occasion) -> (&'static str, &'static str) {
    match occasion {
        Occasion::MaintenanceStarts => (
            "Scheduled maintenance",
            concat!(
                "Heads-up: we have scheduled maintenance{% if startsAt %}, starting {{ startsAt|time }}{% endif %}. \
                    During it ",
                pause!(),
                ". Your credits are kept. Thanks for bearing with us!"
            ),
        ),
        Occasion::CalledOff => (
            "Maintenance is called off",
            "The maintenance{% if startsAt %} planned for {{ startsAt|time }}{% endif %} does not take place: you can \
                buy and use credits as before. We will let you know before the next one.",
        ),
        Occasion::Finished => {
            ("Maintenance is done", "Maintenance is done: you can buy and use credits again. Thanks for waiting!")
        }
        Occasion::RolledBack => (
            "Maintenance has ended",
            "Maintenance has ended: you can buy and use credits as before. The planned improvement follows another \
                time. Thanks for waiting!",
        ),
        _ => NOTHING_NEW,
    }
}

fn status_page(occasion: Occasion) -> (&'static str, &'static str) {
    match occasion {
        Occasion::MaintenanceStarts => (
            "Scheduled maintenance of credits",
            "{% if startsAt %}Start: {{ startsAt|time }}\n{% endif %}{% if expectedWindowSeconds %}Expected length: \
                {{ expectedWindowSeconds|duration }}\n{% endif %}Affected: buying and using credits\nNot affected: \
                signing in, seeing balances",
        ),
        Occasion::CalledOff => (
            "Maintenance of credits called off",
            "{% if startsAt %}Planned start: {{ startsAt|time }}\n{% endif %}Buying and using credits works as before.",
        ),
        Occasion::Finished => ("Maintenance of credits completed", "Buying and using credits works again."),
        Occasion::RolledBack => (
            "Maintenance of credits ended",
            "Buying and using credits works as before. The planned improvement will be scheduled again.",
        ),
        _ => NOTHING_NEW,
    }
}

/// For notices that do not go to the public.
const NOTHING_NEW: (&str, &str) =
    ("News of our credits", "There is nothing that you have to do; buying and using credits works.");
