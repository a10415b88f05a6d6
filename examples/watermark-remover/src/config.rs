//! Settings from the environment, and what they say about the connection to the database.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use tokio_postgres::config::SslMode;

/// What the environment (or the command line) sets.
#[derive(clap::Parser)]
#[command(version, about)]
pub struct Settings {
    /// Connection URL; `sslmode=verify-full` and `sslrootcert` are understood.
    #[arg(long, env, hide_env_values = true)]
    pub database_url: String,
    /// Certificates of the authorities that may have signed the server's; with it, TLS is required and verified in
    /// full.
    #[arg(long, env)]
    pub database_ca_file: Option<PathBuf>,
    /// Most sessions that this process holds at a time.
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub pool_size: u16,
    /// Address to serve on.
    #[arg(long, env, default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Which credit system answers: the switch that the migration flips.
    #[arg(long, env)]
    pub credit_system_version: Version,
    /// Whether this release can be rolled back to v1; shown by `/version`.
    #[arg(long, env, default_value_t = true, action = clap::ArgAction::Set)]
    pub enable_rollback: bool,
    /// Email of the user whom probes log in as. His login needs `PROBE_PASSWORD`; all other users are test data without
    /// one.
    #[arg(long, env)]
    pub probe_email: Option<String>,
    /// The password of `PROBE_EMAIL`; without it no one logs in as him.
    #[arg(long, env, hide_env_values = true)]
    pub probe_password: Option<String>,
    /// Share (0 to 1) of requests to v2's credit endpoints that fail with 500 before they touch the database.
    #[arg(long, env, default_value = "0", value_parser = share)]
    pub v2_failure_rate: f64,
    /// What v2 does wrong on purpose: none or more, with commas between them.
    #[arg(long, env, default_value = "", value_parser = faults)]
    pub v2_faults: Faults,
    /// Sessions that v2 takes from the database besides its pool, and never uses.
    #[arg(long, env, default_value_t = 0)]
    pub v2_idle_sessions: u16,
}

impl Settings {
    /// What this version does wrong on purpose: nothing on v1, which must be safe to roll back to.
    pub fn faults(&self) -> Faults {
        match self.credit_system_version {
            Version::V1 => Faults::default(),
            Version::V2 => self.v2_faults,
        }
    }
}

/// Faults that can be switched on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// `balances`: a deduction takes one credit less from the balance than it reports, silently.
    pub balances: bool,
    /// `payments`: the payment provider refuses every charge, so there are no upgrades.
    pub payments: bool,
    /// `login`: no one can log in.
    pub login: bool,
}

fn faults(text: &str) -> Result<Faults, String> {
    let mut faults = Faults::default();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "balances" => faults.balances = true,
            "payments" => faults.payments = true,
            "login" => faults.login = true,
            other => return Err(format!("{other}: must be balances, payments or login")),
        }
    }
    Ok(faults)
}

/// The two credit systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Version {
    /// Purchased packages and subscriptions: `credit_service`.
    V1,
    /// Subscriptions only: `credit_service_simplified`.
    V2,
}

impl Version {
    /// All that this binary contains.
    pub const ALL: [Self; 2] = [Self::V1, Self::V2];
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

/// Why the settings can't be used. Never holds the URL: it has a password in it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("DATABASE_URL: {0}")]
    Url(tokio_postgres::Error),
    #[error("DATABASE_URL: sslmode {0} is not known")]
    SslMode(String),
    #[error(
        "DATABASE_URL asks for sslmode={0}: set DATABASE_CA_FILE (or sslrootcert), the server's certificate is always \
            verified"
    )]
    NoAuthority(String),
    #[error("DATABASE_CA_FILE is set, but DATABASE_URL says sslmode=disable")]
    Contradiction,
    #[error("certificates in {path}: {reason}")]
    Certificates { path: PathBuf, reason: String },
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("connection pool: {0}")]
    Pool(String),
}

/// How to connect: with a file of authorities by TLS and verified in full, without one in plain text.
///
/// `tokio_postgres` knows neither `verify-full` nor `sslrootcert`, so these are taken out of the URL here.
pub fn connection(
    url: &str,
    ca_file: Option<PathBuf>,
) -> Result<(tokio_postgres::Config, Option<PathBuf>), ConfigError> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut ca_file, mut rest) = (None, ca_file.filter(|path| !path.as_os_str().is_empty()), Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value),
            Some(("sslrootcert", value)) => ca_file = ca_file.or_else(|| Some(value.replace("%2F", "/").into())),
            _ => rest.push(pair),
        }
    }
    let rest = rest.join("&");
    let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{rest}") };
    let mut config = tokio_postgres::Config::from_str(&url).map_err(ConfigError::Url)?;
    match (mode, &ca_file) {
        (Some("disable"), Some(_)) => return Err(ConfigError::Contradiction),
        (Some(mode @ ("require" | "verify-ca" | "verify-full")), None) => {
            return Err(ConfigError::NoAuthority(mode.to_owned()));
        }
        (None | Some("disable" | "allow" | "prefer" | "require" | "verify-ca" | "verify-full"), _) => {}
        (Some(mode), _) => return Err(ConfigError::SslMode(mode.to_owned())),
    }
    config.ssl_mode(if ca_file.is_some() { SslMode::Require } else { SslMode::Disable });
    Ok((config, ca_file))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("postgres://app@db/credits", None, Ok(None))]
    #[case::ca_file("postgres://app@db/credits", Some("/ca"), Ok(Some("/ca")))]
    #[case::ca_in_url("postgres://app@db/credits?sslmode=verify-full&sslrootcert=%2Fca", None, Ok(Some("/ca")))]
    #[case::others_are_kept("postgres://app@db?dbname=credits&sslmode=disable", None, Ok(None))]
    #[case::file_wins("postgres://app@db/credits?sslrootcert=/other", Some("/ca"), Ok(Some("/ca")))]
    #[case::empty_file("postgres://app@db/credits?sslmode=prefer", Some(""), Ok(None))]
    #[case::no_authority("postgres://app@db/credits?sslmode=require", None, Err("DATABASE_CA_FILE"))]
    #[case::contradiction("postgres://app@db/credits?sslmode=disable", Some("/ca"), Err("sslmode=disable"))]
    #[case::unknown_mode("postgres://app@db/credits?sslmode=maybe", None, Err("maybe is not known"))]
    #[case::broken("postgres://app@db:port/credits", None, Err("DATABASE_URL"))]
    fn tls_follows_url_and_file(
        #[case] url: &str,
        #[case] ca: Option<&str>,
        #[case] expected: Result<Option<&str>, &str>,
    ) {
        match (connection(url, ca.map(PathBuf::from)), expected) {
            (Ok((config, ca)), Ok(expected)) => {
                assert_eq!(ca, expected.map(PathBuf::from));
                assert_eq!(config.get_ssl_mode() == SslMode::Require, expected.is_some());
                assert_eq!(config.get_dbname(), Some("credits"));
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, _) => panic!("{:?}", got.map(|(_, ca)| ca)),
        }
    }

    #[rstest]
    #[case("", Some((false, false, false)))]
    #[case("balances", Some((true, false, false)))]
    #[case("login, payments", Some((false, true, true)))]
    #[case("logins", None)]
    fn faults_are_named(#[case] text: &str, #[case] expected: Option<(bool, bool, bool)>) {
        assert_eq!(faults(text).ok().map(|f| (f.balances, f.payments, f.login)), expected);
    }

    #[rstest]
    #[case("v1", Faults::default())]
    #[case("v2", Faults { login: true, ..Faults::default() })]
    fn v1_has_no_faults(#[case] version: &str, #[case] expected: Faults) {
        let arguments =
            ["test", "--database-url=postgres://db/credits", "--v2-faults=login", "--credit-system-version"];
        let settings = <Settings as clap::Parser>::parse_from(arguments.into_iter().chain([version]));
        assert_eq!(settings.faults(), expected);
    }

    #[rstest]
    #[case("0", Some(0.0))]
    #[case("0.25", Some(0.25))]
    #[case("1", Some(1.0))]
    #[case("1.1", None)]
    #[case("-0.1", None)]
    #[case("NaN", None)]
    #[case("half", None)]
    fn failure_rate_is_a_share(#[case] text: &str, #[case] expected: Option<f64>) {
        assert_eq!(share(text).ok(), expected);
    }
}
