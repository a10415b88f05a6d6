//! The servers that a connection URL names, in its order, and their addresses.
//!
//! A list of hosts is no part of a URL's syntax: it is taken out before the rest is parsed.

use std::{fmt, net::IpAddr, time::Duration};

use tokio::net::lookup_host;

/// Port of a host that names none.
const DEFAULT_PORT: u16 = 5432;

/// One host of the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// Its name or address, decoded.
    pub(super) name: String,
    pub(super) port: u16,
}

/// `host:port`.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

impl Host {
    /// As a certificate names it.
    pub(super) fn alternative_name(&self) -> String {
        let kind = if self.name.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
        format!("{kind}:{}", self.name)
    }

    /// Its addresses, within `limit`. The text says why there is none.
    pub(super) async fn addresses(&self, limit: Duration) -> Result<Vec<IpAddr>, String> {
        let found = tokio::time::timeout(limit, lookup_host((self.name.as_str(), self.port))).await;
        let mut addresses: Vec<IpAddr> = match found {
            Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("its name was not resolved within {} s", limit.as_secs())),
        };
        addresses.dedup();
        match addresses.is_empty() {
            true => Err("its name has no address".to_owned()),
            false => Ok(addresses),
        }
    }
}

/// Takes the hosts out of a URL. Returns it with the first one alone, and all of them.
///
/// # Errors
/// A text that says what is wrong; it has nothing of the URL, which holds a password.
pub(super) fn split(url: &str) -> Result<(String, Vec<Host>), &'static str> {
    let (scheme, rest) = url.split_once("://").ok_or("the connection URL must start with postgresql://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    let (user, list) = authority.rsplit_once('@').map_or(("", authority), |(user, list)| (user, list));
    let hosts = read(list, None)?;
    let first = list.split(',').next().unwrap_or_default();
    let at = if authority.contains('@') { "@" } else { "" };
    Ok((format!("{scheme}://{user}{at}{first}{rest}"), hosts))
}

/// Reads `host:port,host:port`. `ports` are those of hosts that name none, as libpq reads them: one for each, or one
/// for all.
///
/// # Errors
/// As of [`split`].
pub(super) fn read(list: &str, ports: Option<&str>) -> Result<Vec<Host>, &'static str> {
    let ports: Vec<&str> = ports.unwrap_or_default().split(',').map(str::trim).collect();
    let port = |index: usize| if ports.len() == 1 { ports.first() } else { ports.get(index) };
    list.split(',').enumerate().map(|(index, text)| host(text.trim(), port(index).copied())).collect()
}

fn host(text: &str, other_port: Option<&str>) -> Result<Host, &'static str> {
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port.strip_prefix(':')),
        None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
    };
    if name.is_empty() || name.contains('/') || name.contains("%2F") || name.contains("%2f") {
        return Err("the connection must name each host; sockets are not supported");
    }
    let port = match port.filter(|port| !port.is_empty()).or(other_port) {
        None | Some("") => DEFAULT_PORT,
        Some(port) => port.parse().map_err(|_| "the port of a host is no number up to 65535")?,
    };
    Ok(Host { name: name.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("postgresql://a:b@h/d?x=1", "postgresql://a:b@h/d?x=1", "h:5432")]
    #[case("postgresql://a:b@h1:1,h2,[::1]:3/d", "postgresql://a:b@h1:1/d", "h1:1 h2:5432 [::1]:3")]
    #[case("postgresql://a:p,@h1,h2:/d", "postgresql://a:p,@h1/d", "h1:5432 h2:5432")]
    #[case("postgresql://h1,h2", "postgresql://h1", "h1:5432 h2:5432")]
    fn the_hosts_are_taken_out_of_the_url(#[case] url: &str, #[case] rest: &str, #[case] hosts: &str) {
        let (found, list) = split(url).unwrap();
        let list: Vec<String> = list.iter().map(ToString::to_string).collect();
        assert_eq!((found.as_str(), list.join(" ").as_str()), (rest, hosts));
    }

    #[rstest::rstest]
    #[case("h1,h2:1", None, "h1:5432 h2:1")]
    #[case("h1, h2:1", Some("7"), "h1:7 h2:1")]
    #[case("h1,h2", Some("7,8"), "h1:7 h2:8")]
    #[case("[::1]", Some("7"), "[::1]:7")]
    fn hosts_and_ports_may_be_apart(#[case] list: &str, #[case] ports: Option<&str>, #[case] hosts: &str) {
        let list: Vec<String> = read(list, ports).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(list.join(" "), hosts);
    }

    #[rstest::rstest]
    #[case("postgresql:///d")]
    #[case("postgresql://a@h1,/d")]
    #[case("postgresql://a@h1,h2:99999/d")]
    #[case("postgresql://a@%2Fvar%2Frun/d")]
    #[case("no url")]
    fn what_names_no_host_is_refused(#[case] url: &str) {
        split(url).unwrap_err();
    }
}
