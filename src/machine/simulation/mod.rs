//! Random schedules over a fake world: crashes between any two acts, stale reads, two controllers, two pods, an API
//! server that is away. What must never happen is checked after each act. Seeds are printed and can be replayed:
//! `SIMULATION_SEED=42 cargo test simulation::replay -- --nocapture --ignored`.
//!
//! Called by `cargo test` alone. Imports `shared`, `api` and `machine`.

mod application;
mod controllers;
mod outsiders;
mod runners;
mod safeguards;
mod world;

use std::collections::BTreeMap;

use controllers::Controller;
use fastrand::Rng;
use jiff::SignedDuration;
use runners::Pod;
use world::{Defect, World};

use super::{Job, emergency_page, faults};
use crate::{
    api::{DecisionKind, OnDrift, Phase},
    shared::time::seconds,
};

/// Schedules of the main test; `SIMULATION_SCHEDULES` sets another number.
const SCHEDULES: u64 = 10_000;
/// Wild acts per schedule, before everyone is let work in peace: fewest and most.
const WILD: std::ops::Range<u32> = 200..900;
/// Acts in peace without another step, after which a schedule does not end.
const STILL: u32 = 4_000;
/// Acts in peace, within which each schedule must have ended.
const PEACE: u32 = 40_000;
/// Acts after the end, in which leaders that fell asleep wake up and finish what they had started.
const AFTERMATH: u32 = 120;
/// How often a leader falls asleep between reading a target and writing it: forward, and in a rollback, which would
/// otherwise find nothing left to happen.
const LATE_LEADERS: u32 = 3;
/// How often the API server goes away, per schedule.
const OUTAGES: u32 = 4;

/// How often an outsider sets the flag back after the window, per schedule.
const DRIFTS: u32 = 2;
/// How often the author edits the spec, per schedule.
const EDITS: u32 = 2;
/// How often something gets in the way of a switch: forward, and in a rollback.
const OBSTRUCTIONS: u32 = 2;
/// How often a pod dies while writes are blocked, per schedule, when the wild acts have ended.
const DEATHS: u32 = 2;
/// How often something that a rollback needs is lost after the window, per schedule.
const LOSSES: u32 = 2;
/// Acts after which operators have fixed it at the latest.
const LONGEST_OBSTRUCTION: u32 = 1_500;
/// Acts after which a rollback that keeps writes blocked needlessly must have unblocked them.
const NEEDLESS: u32 = 250;

/// Acts of pods after which a window past its deadline must have ended, or an alert must be out.
const IDLE: u32 = 40;

/// One schedule, in a world with a defect or with a machine that has one of its `own`. `Err` says which property broke,
/// and when.
fn schedule(seed: u64, defect: Defect, own: Option<faults::Fault>, trace: bool) -> Result<Option<Phase>, String> {
    faults::build_in(own);
    let mut rng = Rng::with_seed(seed);
    let mut w = World::new(defect);
    let mut controllers = [Controller::default(), Controller::default()];
    let mut pods: Vec<Pod> = vec![];
    let mut next_pod = 0;
    let mut asleep = [0; 2];
    let mut idle = 0;
    // Forward, and in a rollback.
    let (mut late, mut obstructions) = ([0; 2], [0; 2]);
    let (mut deaths, mut outages, mut outage_ends) = (0, 0, 0);
    let mut ended: Option<u32> = None;
    // What this schedule's people and troubles are like.
    let (trouble, stop, delete) = (rng.u8(..), rng.u8(..) < 60, rng.u8(..) < 30);
    let wild_acts = rng.u32(WILD);
    let (mut drifts, mut edits, mut losses) = (0, 0, 0);
    let clocks_differ = rng.bool();
    for controller in controllers.iter_mut().filter(|_| clocks_differ) {
        controller.skew = outsiders::skew(&mut rng);
    }
    if clocks_differ {
        w.node_skew = outsiders::node_skew(&mut rng);
    }
    if rng.bool() {
        w.add_job_check();
    }
    if let (true, Some(m)) = (rng.bool(), &mut w.migration) {
        m.value.spec.application.flag.on_drift = OnDrift::Restore;
    }
    // Of 256 pods so many read the flag's old value.
    let lag = if rng.bool() { rng.u8(1..80) } else { 0 };
    // Without a probe annotations and starts alone say which version a pod runs.
    if let (true, Some(m)) = (lag == 0 && rng.bool(), &mut w.migration) {
        m.value.spec.application.version_probe = None;
    }
    let (obstructive, repair) = (rng.u8(..) < 192, rng.u8(5..40));
    let (mut obstructed_at, mut needless) = (0, 0);
    let mut last_step = (0, None);
    for act in 0..wild_acts + PEACE {
        let wild = act < wild_acts;
        let rolling_back = w.phase() == Some(Phase::RollingBack);
        let way = usize::from(rolling_back);
        w.api_up = act >= outage_ends;
        if w.is_obstructed() && act > obstructed_at + LONGEST_OBSTRUCTION {
            w.repair();
        }
        match rng.u8(..109) {
            0..40 => {
                let i = rng.usize(..2);
                if asleep[i] <= act {
                    controllers[i].act(&mut w, &mut rng);
                }
                // The worst moment to fall asleep: the target is read, the write is next. Most windows open when the
                // wild acts have ended, so it happens later too; some sleep until everything has ended.
                let may_sleep = late[way] < LATE_LEADERS && ended.is_none() && asleep[1 - i] <= act;
                let switches_back = controllers[i].about_to_set_flag() && rolling_back;
                let sleepy = if switches_back { 128 } else { 50 };
                if may_sleep && controllers[i].about_to_write() && rng.u8(..) < sleepy {
                    late[way] += 1;
                    asleep[i] = if rng.bool() { u32::MAX } else { act + rng.u32(100..1500) };
                    // Then the others may not be able to write it either, until the deadline has passed. Nothing else
                    // gets in the way, which could make the late write a conflict.
                    if obstructive && switches_back && rng.u8(..) < 192 {
                        (obstructed_at, obstructions[way], asleep[i]) = (act, OBSTRUCTIONS, u32::MAX);
                        w.flag.value.refused = true;
                    }
                }
            }
            40..75 if !pods.is_empty() => {
                let i = rng.usize(..pods.len());
                let overdue = w.overdue();
                if !pods[i].act(&mut w, &mut rng) {
                    pods.swap_remove(i);
                }
                idle = if overdue && w.overdue() { idle + 1 } else { 0 };
                if idle > IDLE {
                    return Err(format!(
                        "seed {seed}, act {act}: 2: writes are blocked past the deadline, without an act or an alert"
                    ));
                }
            }
            75..80 => {
                w.run_check_jobs(&mut rng);
                let skew = if clocks_differ { outsiders::skew(&mut rng) } else { SignedDuration::ZERO };
                start_pods(&mut w, &mut pods, &mut next_pod, wild && rng.u8(..) < 20, skew);
            }
            80..88 => w.roll(&mut rng, lag),
            88..91 => w.now += seconds(if wild { rng.i64(1..15) } else { 5 }),
            91 if drifts < DRIFTS && w.api_up && w.drift() => drifts += 1,
            92..95 if !wild => act_as_operators(&mut w, &mut rng, false, false),
            92..94 => act_as_operators(&mut w, &mut rng, wild && stop, wild && delete),
            // Mostly while writes are blocked, and now and then for longer than any window may last.
            draw @ (95 | 97)
                if trouble < 100
                    && w.api_up
                    && outages < OUTAGES
                    && ended.is_none()
                    && (draw == 97 || (!wild && w.db.blocked_at.is_some())) =>
            {
                outages += 1;
                let longest = if rng.bool() { 150 } else { 1000 };
                outage_ends = act + rng.u32(20..longest);
            }
            // Mostly where it matters most.
            100..102
                if obstructive
                    && obstructions[way] < OBSTRUCTIONS
                    && ended.is_none()
                    && rng.u8(..)
                        < match w.db.blocked_at {
                            _ if rolling_back => 255,
                            Some(_) => 40,
                            None => 12,
                        } =>
            {
                obstructions[way] += 1;
                obstructed_at = act;
                w.obstruct(&mut rng);
            }
            108 if w.phase() == Some(Phase::Observing) && rng.u8(..) < 40 => {
                w.now += SignedDuration::from_hours(rng.i64(20..60));
            }
            106..108 if obstructive && losses < LOSSES && rng.u8(..) < 64 && w.lose_safeguard(&mut rng) => losses += 1,
            104..106 => w.restart_container(&mut rng),
            102..104 if rng.u8(..) < repair => w.repair(),
            99 if edits < EDITS && w.api_up && rng.u8(..) < 20 && w.edit_spec() => edits += 1,
            96 if !pods.is_empty() && (wild || (deaths < DEATHS && w.db.blocked_at.is_some())) => {
                deaths += u32::from(!wild);
                kill_pod(&mut w, &mut pods, &mut rng);
            }
            _ if !wild => {}
            94 => asleep[rng.usize(..2)] = act + rng.u32(20..200),
            95 => controllers[rng.usize(..2)].crash(),
            98 if trouble < 40 => w.sql.0 = format!("sha256:up{}", rng.u8(..3)),
            99 if trouble < 20 => w.now += seconds(90),
            _ => {}
        }
        needless = if w.blocked_needlessly() { needless + 1 } else { 0 };
        if needless > NEEDLESS {
            return Err(format!("seed {seed}, act {act}: 7: one version alone serves, and writes stay blocked"));
        }
        // The page need not have what only a defect leads to.
        if let (Some(m), Defect::None, None) = (&w.migration, defect, own) {
            emergency_page::assert_has(&m.value.status);
        }
        w.check().map_err(|e| format!("seed {seed}, act {act}: {e}"))?;
        if trace {
            let m = w.migration.as_ref().map(|m| &m.value.status);
            println!(
                "{act} {:?} {:?} {:?} block={:?} flag={} schema={:?} runs={:?}",
                m.and_then(|m| m.phase),
                m.and_then(|m| m.step),
                m.and_then(|m| m.conditions.iter().find(|c| c.type_ == "Ready")).map(|c| (&c.reason, &c.message)),
                w.db.blocked_at.map(|t| t.as_second()),
                w.flag.value.value,
                w.db.schema,
                w.runs
                    .iter()
                    .map(|(n, r)| (
                        n,
                        r.value.run.spec.window.as_ref().map(|o| o.command),
                        r.value.run.status.as_ref().map(|s| s.phase),
                        &r.value.job
                    ))
                    .collect::<Vec<_>>()
            );
        }
        let step = w.migration.as_ref().map(|m| (m.value.status.phase, m.value.status.step));
        if wild || step != last_step.1 {
            last_step = (act, step);
        } else if act > last_step.0 + STILL {
            break;
        }
        let over = matches!(
            w.phase(),
            None | Some(Phase::Completed | Phase::RolledBack | Phase::Cancelled | Phase::RollbackFailed)
        );
        match ended {
            // A rollback that an operator orders after `RollbackFailed` is a new start.
            Some(_) if !over => ended = None,
            Some(since) if act >= since + AFTERMATH => break,
            Some(_) => {}
            // The end is checked when no one is left who could still write.
            None if !wild && over && w.check_end().is_ok() => {
                ended = Some(act);
                asleep = [0; 2];
                // Otherwise what they write late would be refused, and show nothing.
                w.repair();
            }
            None => {}
        }
    }
    w.check_secrets().map_err(|e| format!("seed {seed}: {e}"))?;
    w.check_end().map_err(|e| format!("seed {seed}: {e}"))?;
    Ok(w.phase())
}

/// The Job controller: a pod for each active Job, and now and then a second one.
fn start_pods(w: &mut World, pods: &mut Vec<Pod>, next: &mut u32, twice: bool, skew: SignedDuration) {
    let jobs: Vec<String> = w.runs.iter().filter(|(_, r)| r.value.job == Job::Active).map(|(n, _)| n.clone()).collect();
    for name in jobs {
        let running = pods.iter().filter(|p| p.run == name).count();
        if running == 0 || (twice && running == 1) {
            *next += 1;
            pods.push(Pod::new(*next, &name, skew));
        }
    }
}

/// One pod dies. Some deaths are the last that the Job allows: it fails without a report.
fn kill_pod(w: &mut World, pods: &mut Vec<Pod>, rng: &mut Rng) {
    let dead = pods.swap_remove(rng.usize(..pods.len()));
    let mut ended = vec![dead.id];
    if rng.u8(..) < 40
        && let Some(run) = w.runs.get_mut(&dead.run)
    {
        run.value.job = Job::Failed { reason: "BackoffLimitExceeded".into() };
        // The Job controller ends what is left of a failed Job.
        ended.extend(pods.extract_if(.., |pod| pod.run == dead.run).map(|pod| pod.id));
    }
    w.db.worker = w.db.worker.filter(|worker| !ended.contains(worker));
}

fn act_as_operators(w: &mut World, rng: &mut Rng, stop: bool, delete: bool) {
    if w.api_up {
        w.answer_drift();
    }
    // Mostly they answer what they are asked.
    let asked = w.phase();
    match rng.u8(..26) {
        16..22 if asked == Some(Phase::Observing) => w.decide("ann", DecisionKind::Keep),
        16..22 => w.decide(if rng.bool() { "ann" } else { "eve" }, DecisionKind::Ready),
        0..6 => w.decide("ann", DecisionKind::Approve),
        6..12 => {
            let who = if w.defect == Defect::ForgedNames { "ann" } else { "bob" };
            w.decide(who, DecisionKind::Approve);
        }
        12 => w.decide("author", DecisionKind::Approve),
        13 if stop => w.decide("ann", DecisionKind::Abort),
        14 if stop => w.decide("bob", DecisionKind::Rollback),
        15 if delete => {
            let version = w.bump();
            if let Some(m) = &mut w.migration {
                m.value.deleting = true;
                m.version = version;
                if !m.value.finalizer {
                    w.migration = None;
                }
            }
        }
        _ => {}
    }
}

/// How many schedules ended in which phase, and what broke in which, by seed.
type Outcome = (BTreeMap<String, u64>, BTreeMap<u64, String>);

fn run_schedules(defect: Defect, own: Option<faults::Fault>, seeds: std::ops::Range<u64>) -> Outcome {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let parts: Vec<Outcome> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|t| {
                let seeds = seeds.clone();
                scope.spawn(move || {
                    let (mut ends, mut broken) = Outcome::default();
                    for seed in seeds.filter(|s| s % threads == t) {
                        match schedule(seed, defect, own, false) {
                            Ok(phase) => *ends.entry(format!("{phase:?}")).or_default() += 1,
                            Err(e) => drop(broken.insert(seed, e)),
                        }
                    }
                    (ends, broken)
                })
            })
            .collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    });
    let mut all = Outcome::default();
    for (ends, broken) in parts {
        for (k, n) in ends {
            *all.0.entry(k).or_default() += n;
        }
        all.1.extend(broken);
    }
    all
}

#[test]
fn what_must_never_happen_never_happens() {
    let n = std::env::var("SIMULATION_SCHEDULES").ok().and_then(|s| s.parse().ok()).unwrap_or(SCHEDULES);
    let (ends, broken) = run_schedules(Defect::None, None, 0..n);
    println!("{n} schedules ended {ends:?}");
    let first: Vec<_> = broken.values().take(8).collect();
    assert!(broken.is_empty(), "{} of {n} schedules broke, first: {first:#?}", broken.len());
    // Each way to end was really taken, or the schedules would show little.
    for end in [Phase::Completed, Phase::RolledBack, Phase::RollbackFailed, Phase::Cancelled] {
        assert!(ends.get(&format!("{:?}", Some(end))).is_some_and(|n| *n > 20), "{end:?} in {ends:?}");
    }
}

#[rstest::rstest]
#[case(Defect::LedgerIgnored, "1:")]
#[case(Defect::DeadlineIgnored, "2:")]
#[case(Defect::SilentHold, "2:")]
#[case(Defect::UnfencedWrites, "3:")]
#[case(Defect::ForgedNames, "4:")]
#[case(Defect::RawErrors, "5:")]
#[case(Defect::StopsAtBroken, "6:")]
#[case(Defect::PodsByLabels, "7:")]
fn each_deliberate_defect_is_found(#[case] defect: Defect, #[case] property: &str) {
    assert_found(defect, None, property);
}

#[rstest::rstest]
#[case(faults::Fault::UidOfAttempt, "1:")]
#[case(faults::Fault::SilentFailure, "2:")]
#[case(faults::Fault::UnacknowledgedSwitch, "3:")]
#[case(faults::Fault::SilentDrift, "3:")]
#[case(faults::Fault::OnePersonTwice, "4:")]
#[case(faults::Fault::EditIgnored, "4:")]
#[case(faults::Fault::LostJobAwaited, "6:")]
#[case(faults::Fault::LostCheckAwaited, "6: a check is due")]
#[case(faults::Fault::FlagNotConfirmed, "3:")]
#[case(faults::Fault::ProbedByOwnClock, "3:")]
#[case(faults::Fault::BlocksWithoutExit, "7:")]
#[case(faults::Fault::RollbackNotGivenUp, "7:")]
#[case(faults::Fault::FailedRolloutAwaited, "7:")]
#[case(faults::Fault::SafeguardsIgnored, "7: RollbackReady")]
#[case(faults::Fault::RehearsalsIgnored, "7: RollbackReady")]
#[case(faults::Fault::DownSqlAssumed, "7:")]
#[case(faults::Fault::SilentWait, "7: a rollback waits")]
#[case(faults::Fault::SilentOverdue, "7: a window is past its deadline")]
#[case(faults::Fault::SilentSwitch, "7: the application cannot be switched back")]
#[case(faults::Fault::SilentRefusal, "7: the application cannot be switched back")]
fn each_deliberate_fault_of_the_machine_is_found(#[case] fault: faults::Fault, #[case] property: &str) {
    assert_found(Defect::None, Some(fault), property);
}

/// That `property` breaks in some schedule. A schedule ends with the first property that breaks: one that mostly breaks
/// behind another one takes thousands of schedules to be seen.
fn assert_found(defect: Defect, fault: Option<faults::Fault>, property: &str) {
    const BATCH: u64 = 250;
    let mut others = vec![];
    for start in (0..SCHEDULES).step_by(BATCH as usize) {
        let (_, broken) = run_schedules(defect, fault, start..start + BATCH);
        let is_property = |e: &String| e.split_once(": ").is_some_and(|(_, what)| what.starts_with(property));
        let (found, rest): (Vec<_>, Vec<_>) = broken.into_values().partition(is_property);
        if let Some(first) = found.first() {
            let all = start + BATCH;
            return println!("{defect:?} {fault:?}: {} of {all} schedules, first: {first}", found.len());
        }
        others.extend(rest);
    }
    others.truncate(5);
    panic!("{defect:?} {fault:?} was not found as {property} in {SCHEDULES} schedules: {others:#?}");
}

#[test]
#[ignore = "replays one schedule with its trace"]
fn replay() {
    let seed = std::env::var("SIMULATION_SEED").unwrap().parse().unwrap();
    println!("{:?}", schedule(seed, Defect::None, None, true));
}
