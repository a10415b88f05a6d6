//! Preflight's part on the place of the copy.

use tokio_postgres::Client;

use crate::{
    api::Reason,
    runner::{
        Failure,
        context::TaskContext,
        database::{connection::Target, copy_place, scratch},
        tasks::findings::Findings,
    },
};

/// Checks where the rehearsals make their copy of the database that `client` is connected to.
pub async fn check(context: &TaskContext<'_>, target: &Target, client: &Client, findings: &mut Findings) {
    let elsewhere = match context.settings.copy_target() {
        Ok(None) => None,
        Ok(Some(other)) => match other.connect("preflight").await {
            Ok(session) => Some((other, session)),
            Err(failure) => return findings.add("server of the copy", Err(failure)),
        },
        Err(failure) => return findings.add("server of the copy", Err(failure)),
    };
    let plan = &context.spec.plan;
    let (on, session) = elsewhere.as_ref().map_or((target, client), |(other, session)| (other, session));
    findings.add("CREATEDB", copy_place::may_create(session, on).await);
    let place = match &elsewhere {
        Some((other, session)) => copy_place::elsewhere(client, session, other, &plan.database.application_roles).await,
        None => copy_place::next_to_original(client, &plan.rehearsal.max_size).await,
    };
    findings.add("place of the copy", place);
    let name = &plan.rehearsal.database;
    let free = match name == on.database() {
        true => Err(Failure::new(
            Reason::ScratchDatabaseExists,
            format!("spec.rehearsal.database is {name}, the database itself; next: choose a name that is free"),
        )),
        false => scratch::leftover(session, name, &context.spec.migration_uid).await.map(|left| match left {
            false => format!("{name} is free"),
            true => format!("{name} is left of an earlier rehearsal and will be dropped"),
        }),
    };
    findings.add("scratch database", free);
}
