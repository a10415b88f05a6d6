//! Traffic from outside: keeps a steady mix of requests on the service and reports for how long reads and writes
//! failed.
//!
//! 70 % `GET /credits`, 25 % deductions of one credit, 5 % upgrades (which grant more than the deductions take). Each
//! request has a connection of its own, so that it goes where the Kubernetes service points at that moment.

use std::{
    collections::BTreeMap,
    error::Error,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use reqwest::{Client, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{self, Instant, MissedTickBehavior},
};
use watermark_remover::outage::{Span, Verdict, outages, quantile, total_and_longest};

const TIMEOUT: Duration = Duration::from_secs(2);
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Sends a steady mix of requests, and reports how long reads and writes failed.
#[derive(Parser)]
struct Args {
    /// Where the service is, e.g. http://watermark-remover
    #[arg(long)]
    url: String,
    /// Requests per second, all kinds together.
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Users user1@example.com to user<N>@example.com take part.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    users: u64,
    /// Most requests in flight.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    workers: u64,
    /// Where the summary is written to.
    #[arg(long)]
    output: PathBuf,
    /// Seconds to run; without it until SIGTERM or SIGINT.
    #[arg(long)]
    duration: Option<f64>,
    /// Print a line each second.
    #[arg(long)]
    progress: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Deduct,
    Upgrade,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    /// 402: an answer, but nothing was written, so it says nothing about writes being possible.
    NotEnough,
    /// 503 "writes are paused": the application's polite refusal.
    Blocked,
    Failed,
}

#[derive(Clone)]
struct Sample {
    kind: Kind,
    span: Span,
    outcome: Outcome,
    /// The status, or what happened instead of an answer.
    code: String,
}

struct Traffic {
    client: Client,
    url: String,
    tokens: Vec<String>,
    start: Instant,
    stop: AtomicBool,
    samples: Mutex<Vec<Sample>>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if !(args.rate > 0.0 && args.rate.is_finite()) {
        return Err("--rate must be above zero".into());
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // No idle connections: one connection per request. No authorities: nothing outside the cluster is called.
    let client = Client::builder().timeout(TIMEOUT).pool_max_idle_per_host(0).tls_certs_only([]).no_proxy().build()?;
    let url = args.url.trim_end_matches('/').to_owned();
    let tokens = log_in_all(&client, &url, args.users, args.workers).await?;
    eprintln!("{} users logged in", tokens.len());

    let (stop, samples) = (AtomicBool::new(false), Mutex::default());
    let traffic: &'static Traffic =
        Box::leak(Box::new(Traffic { client, url, tokens, start: Instant::now(), stop, samples }));
    let workers: Vec<_> =
        (0..args.workers).map(|worker| tokio::spawn(traffic.work(worker, args.workers, args.rate))).collect();
    let progress = args.progress.then(|| tokio::spawn(traffic.print_progress()));
    let duration = args.duration.map_or(Duration::MAX, Duration::from_secs_f64);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = time::sleep(duration) => {}
    }
    traffic.stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await?;
    }
    if let Some(progress) = progress {
        progress.abort();
    }
    let summary = serde_json::to_string_pretty(&Summary::of(traffic.samples(0)))?;
    std::fs::write(&args.output, format!("{summary}\n"))?;
    println!("{summary}");
    Ok(())
}

/// Logs all users in; waits for a service that is just starting.
async fn log_in_all(client: &Client, url: &str, users: u64, workers: u64) -> Result<Vec<String>, Box<dyn Error>> {
    let mut tasks = tokio::task::JoinSet::new();
    let mut tokens = Vec::new();
    for user in 1..=users {
        if tasks.len() as u64 >= workers
            && let Some(done) = tasks.join_next().await
        {
            tokens.push(done??);
        }
        let (client, url) = (client.clone(), format!("{url}/login"));
        tasks.spawn(async move {
            let deadline = Instant::now() + LOGIN_TIMEOUT;
            let body = json!({ "email": format!("user{user}@example.com") });
            loop {
                let answer =
                    async { client.post(&url).json(&body).send().await?.error_for_status()?.json::<Value>().await }
                        .await;
                let error = match answer.as_ref().map(|answer| answer["token"].as_str()) {
                    Ok(Some(token)) => return Ok(token.to_owned()),
                    Ok(None) => "no token in the answer".to_owned(),
                    Err(error) => error.to_string(),
                };
                if Instant::now() > deadline {
                    return Err(format!("login of user{user}@example.com: {error}"));
                }
                time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        tokens.push(done??);
    }
    tokens.sort();
    Ok(tokens)
}

/// Spreads request numbers over kinds and users alike (the finalizer of splitmix64): the same run each time.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn kind_of(mixed: u64) -> Kind {
    match mixed % 20 {
        0..14 => Kind::Read,
        14..19 => Kind::Deduct,
        _ => Kind::Upgrade,
    }
}

impl Traffic {
    /// Every `workers`-th request of the schedule; one that could not start in time is left out, not made up for.
    async fn work(&self, worker: u64, workers: u64, rate: f64) {
        let first = self.start + Duration::from_secs_f64(worker as f64 / rate);
        let mut schedule = time::interval_at(first, Duration::from_secs_f64(workers as f64 / rate));
        schedule.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut number = worker;
        loop {
            schedule.tick().await;
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let mixed = mix(number);
            let token = &self.tokens[(mixed >> 32) as usize % self.tokens.len()];
            let sample = self.request(kind_of(mixed), token).await;
            self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            number += workers;
        }
    }

    async fn request(&self, kind: Kind, token: &str) -> Sample {
        let (client, url) = (&self.client, &self.url);
        let request = match kind {
            Kind::Read => client.get(format!("{url}/credits")),
            Kind::Deduct => {
                client.post(format!("{url}/credits/deduct")).json(&json!({ "amount": 1, "reason": "traffic" }))
            }
            Kind::Upgrade => client.post(format!("{url}/subscription/upgrade")).json(&json!({ "plan": "basic" })),
        };
        let start = self.start.elapsed().as_secs_f64();
        let answer = async {
            let response = request.bearer_auth(token).send().await?;
            Ok::<_, reqwest::Error>((response.status(), response.json::<Value>().await?))
        };
        let (outcome, code) = match answer.await {
            Ok((StatusCode::OK, _)) => (Outcome::Ok, "200".to_owned()),
            Ok((StatusCode::PAYMENT_REQUIRED, _)) if kind == Kind::Deduct => (Outcome::NotEnough, "402".to_owned()),
            Ok((StatusCode::SERVICE_UNAVAILABLE, body))
                if kind != Kind::Read && body["error"] == "writes are paused" =>
            {
                (Outcome::Blocked, "503 writes are paused".to_owned())
            }
            Ok((status, _)) => (Outcome::Failed, status.as_str().to_owned()),
            Err(error) if error.is_timeout() => (Outcome::Failed, "timeout".to_owned()),
            Err(error) if error.is_connect() => (Outcome::Failed, "no connection".to_owned()),
            Err(_) => (Outcome::Failed, "broken answer".to_owned()),
        };
        Sample { kind, span: Span { start, end: self.start.elapsed().as_secs_f64() }, outcome, code }
    }

    fn samples(&self, from: usize) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)[from..].to_vec()
    }

    async fn print_progress(&self) {
        let (mut each_second, mut seen) = (time::interval(Duration::from_secs(1)), 0);
        loop {
            each_second.tick().await;
            let new = self.samples(seen);
            seen += new.len();
            let count = |write: bool, outcome| {
                new.iter().filter(|s| (s.kind != Kind::Read) == write && s.outcome == outcome).count()
            };
            println!(
                "{:6.1} s  reads {:4} ok {:3} failed  writes {:4} ok {:3} failed {:3} paused",
                self.start.elapsed().as_secs_f64(),
                count(false, Outcome::Ok),
                count(false, Outcome::Failed),
                count(true, Outcome::Ok),
                count(true, Outcome::Failed),
                count(true, Outcome::Blocked),
            );
        }
    }
}

/// The report. "Seconds" last from the first request that did not work to the next of its kind that did.
#[derive(Serialize)]
struct Summary {
    duration_seconds: f64,
    requests: usize,
    /// Share of requests that failed; refusals of paused writes are not failures.
    error_rate: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    reads: Reads,
    writes: Writes,
    codes: BTreeMap<String, usize>,
}

#[derive(Serialize)]
struct Reads {
    ok: usize,
    failed: usize,
    failed_seconds: f64,
    longest_failed_seconds: f64,
    p95_ms: f64,
}

#[derive(Serialize)]
struct Writes {
    ok: usize,
    not_enough: usize,
    failed: usize,
    failed_seconds: f64,
    longest_failed_seconds: f64,
    blocked: usize,
    blocked_seconds: f64,
    longest_blocked_seconds: f64,
    /// Failed or blocked.
    unavailable_seconds: f64,
    longest_unavailable_seconds: f64,
    p95_ms: f64,
}

impl Summary {
    fn of(mut samples: Vec<Sample>) -> Self {
        samples.sort_by(|a, b| a.span.start.total_cmp(&b.span.start));
        let (reads, writes): (Vec<_>, Vec<_>) = samples.iter().cloned().partition(|sample| sample.kind == Kind::Read);
        let failed = |samples: &[Sample]| count(samples, Outcome::Failed);
        let all = latencies(&samples);
        let mut codes = BTreeMap::new();
        for sample in &samples {
            *codes.entry(sample.code.clone()).or_default() += 1;
        }
        Self {
            duration_seconds: rounded(samples.iter().map(|sample| sample.span.end).fold(0.0, f64::max)),
            requests: samples.len(),
            error_rate: failed(&samples) as f64 / samples.len().max(1) as f64,
            p50_ms: quantile(&all, 0.5),
            p95_ms: quantile(&all, 0.95),
            p99_ms: quantile(&all, 0.99),
            max_ms: quantile(&all, 1.0),
            reads: Reads::of(&reads),
            writes: Writes::of(&writes),
            codes,
        }
    }
}

impl Reads {
    fn of(samples: &[Sample]) -> Self {
        let (failed_seconds, longest_failed_seconds) = seconds(samples, &[Outcome::Failed]);
        let (ok, failed) = (count(samples, Outcome::Ok), count(samples, Outcome::Failed));
        Self { ok, failed, failed_seconds, longest_failed_seconds, p95_ms: quantile(&latencies(samples), 0.95) }
    }
}

impl Writes {
    fn of(samples: &[Sample]) -> Self {
        let (failed_seconds, longest_failed_seconds) = seconds(samples, &[Outcome::Failed]);
        let (blocked_seconds, longest_blocked_seconds) = seconds(samples, &[Outcome::Blocked]);
        let (unavailable_seconds, longest_unavailable_seconds) = seconds(samples, &[Outcome::Failed, Outcome::Blocked]);
        Self {
            ok: count(samples, Outcome::Ok),
            not_enough: count(samples, Outcome::NotEnough),
            failed: count(samples, Outcome::Failed),
            failed_seconds,
            longest_failed_seconds,
            blocked: count(samples, Outcome::Blocked),
            blocked_seconds,
            longest_blocked_seconds,
            unavailable_seconds,
            longest_unavailable_seconds,
            p95_ms: quantile(&latencies(samples), 0.95),
        }
    }
}

fn count(samples: &[Sample], outcome: Outcome) -> usize {
    samples.iter().filter(|sample| sample.outcome == outcome).count()
}

/// Sorted, of the requests that were answered as they should be.
fn latencies(samples: &[Sample]) -> Vec<f64> {
    let answered = samples.iter().filter(|sample| sample.outcome == Outcome::Ok);
    let mut milliseconds: Vec<f64> =
        answered.map(|sample| rounded((sample.span.end - sample.span.start) * 1000.0)).collect();
    milliseconds.sort_by(f64::total_cmp);
    milliseconds
}

/// Total and longest time from one of these outcomes to the next success.
fn seconds(samples: &[Sample], outcomes: &[Outcome]) -> (f64, f64) {
    let verdict = |outcome| match outcome {
        Outcome::Ok => Verdict::Works,
        other if outcomes.contains(&other) => Verdict::Fails,
        _ => Verdict::Silent,
    };
    let requests: Vec<_> = samples.iter().map(|sample| (sample.span, verdict(sample.outcome))).collect();
    let (total, longest) = total_and_longest(&outages(&requests));
    (rounded(total), rounded(longest))
}

/// To three digits: more would only be noise.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_as_promised_for_every_user() {
        let kinds: Vec<_> = (0..20_000).map(mix).map(kind_of).collect();
        let share = |kind| kinds.iter().filter(|found| **found == kind).count() as f64 / 20_000.0;
        assert!((share(Kind::Read) - 0.70).abs() < 0.02);
        assert!((share(Kind::Deduct) - 0.25).abs() < 0.02);
        assert!((share(Kind::Upgrade) - 0.05).abs() < 0.01);
        let users_that_write: std::collections::BTreeSet<_> =
            (0..2_000).map(mix).filter(|mixed| kind_of(*mixed) != Kind::Read).map(|mixed| (mixed >> 32) % 20).collect();
        assert_eq!(users_that_write.len(), 20);
    }

    #[test]
    fn blocked_and_failed_writes_are_counted_apart() {
        let sample = |start: f64, kind, outcome, code: &str| Sample {
            kind,
            span: Span { start, end: start + 0.5 },
            outcome,
            code: code.to_owned(),
        };
        let summary = Summary::of(vec![
            sample(5.0, Kind::Deduct, Outcome::Ok, "200"),
            sample(1.0, Kind::Deduct, Outcome::Blocked, "503 writes are paused"),
            sample(2.0, Kind::Upgrade, Outcome::Failed, "500"),
            sample(3.0, Kind::Deduct, Outcome::Ok, "200"),
            sample(2.0, Kind::Read, Outcome::Ok, "200"),
        ]);
        assert_eq!((summary.writes.blocked_seconds, summary.writes.failed_seconds), (2.5, 1.5));
        assert_eq!((summary.writes.unavailable_seconds, summary.reads.failed_seconds), (2.5, 0.0));
        assert_eq!((summary.requests, summary.error_rate, summary.codes["200"]), (5, 0.2, 3));
    }
}
