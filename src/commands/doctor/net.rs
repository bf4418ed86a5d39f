//! Names, connections, TLS and clocks, each tried by itself.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use piko_agent::checkup::Shown;
use piko_bootstrap::tls::{ClientTls, ClientTlsConfig};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

use super::report::Report;

/// For each thing that is tried.
const WITHIN: Duration = Duration::from_secs(5);
/// A clock further off is a fault. Tokens have their times in seconds, and HTTP's dates no fractions.
const SKEW: Duration = Duration::from_secs(30);
/// A certificate is to be renewed before it has so few days left.
const SOON_DAYS: i64 = 14;

/// The addresses of a name. None: it was said why.
pub(super) async fn addresses(report: &mut Report, host: &str, port: u16) -> Vec<SocketAddr> {
    let name = format!("dns {host}");
    match timeout(WITHIN, lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let found: Vec<_> = found.collect();
            let shown: Vec<_> = found.iter().map(|addr| addr.ip().to_string()).collect();
            match found.is_empty() {
                true => report.problem(
                    &name,
                    "the name has no address".to_owned(),
                    "look at the zone, and at /etc/hosts",
                ),
                false => report.good(&name, shown.join(", ")),
            }
            found
        }
        Ok(Err(e)) => {
            report.problem(
                &name,
                format!("no address: {e}"),
                "`getent hosts NAME` on this machine; is the name right?",
            );
            Vec::new()
        }
        Err(_) => {
            report.problem(
                &name,
                format!("no answer within {WITHIN:?}"),
                "look at the name servers in /etc/resolv.conf",
            );
            Vec::new()
        }
    }
}

/// Those of the addresses that take a TCP connection.
pub(super) async fn connects(report: &mut Report, addresses: &[SocketAddr], cure: &str) -> Vec<SocketAddr> {
    let mut open = Vec::new();
    for addr in addresses {
        let began = std::time::Instant::now();
        let name = format!("tcp {addr}");
        match timeout(WITHIN, TcpStream::connect(addr)).await {
            Ok(Ok(_)) => {
                report.good(&name, format!("connected in {:.1} ms", began.elapsed().as_secs_f64() * 1e3));
                open.push(*addr);
            }
            Ok(Err(e)) => report.problem(&name, e.to_string(), cure),
            Err(_) => {
                let words = format!("no answer within {WITHIN:?}: something on the way drops it");
                report.problem(&name, words, "open the port in the firewalls on the way");
            }
        }
    }
    open
}

/// What a server's certificates say, and what it speaks over TLS.
pub(super) fn certificates(report: &mut Report, name: &str, shown: &Shown) {
    let version = shown.version.as_deref().unwrap_or("an unknown version");
    let alpn = shown.alpn.as_deref().map_or_else(|| "none".to_owned(), str::to_owned);
    report
        .good(&format!("tls {name}"), format!("{version}, ALPN {alpn}, {} certificates", shown.chain.len()));
    for (i, der) in shown.chain.iter().enumerate() {
        let label = format!("certificate {name}");
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            report.problem(
                &label,
                format!("number {i} of the chain is none"),
                "let whoever runs the server look at its file",
            );
            continue;
        };
        let (until, now) = (certificate.validity().not_after, ASN1Time::now());
        let days = (until.timestamp() - now.timestamp()) / (24 * 3600);
        let words = format!("{}, by {}, until {until}", certificate.subject(), certificate.issuer());
        if !certificate.validity().is_valid() {
            report.problem(
                &label,
                format!("not valid now: {words}"),
                "renew it; or this machine's clock is wrong",
            );
        } else if days < SOON_DAYS {
            report.warn(&label, format!("{days} days left: {words}"), "renew it");
        } else {
            report.good(&label, words);
        }
    }
}

/// The answer to a GET, whatever it is. `tls`: for `https`.
pub(super) async fn get(url: &str, tls: &ClientTlsConfig) -> Result<Response<Incoming>, String> {
    let tls = ClientTls::load(tls).map_err(|e| e.to_string())?;
    let client = Client::builder(TokioExecutor::new()).build(tls.connector(HttpConnector::new(), false));
    let request = Request::get(url).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    match timeout(WITHIN, client.request(request)).await {
        Ok(answer) => answer.map_err(|e| {
            let cause = std::error::Error::source(&e).map(ToString::to_string);
            cause.unwrap_or_else(|| e.to_string())
        }),
        Err(_) => Err(format!("no answer within {WITHIN:?}")),
    }
}

/// Compares this machine's clock with the date of an answer.
pub(super) fn clock<B>(report: &mut Report, whose: &str, answer: &Response<B>) {
    let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
    let Some(theirs) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else {
        return report.skip("clock", format!("{whose} says no date"));
    };
    let (ours, name) = (SystemTime::now(), format!("clock against {whose}"));
    let (off, word) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(e) => (e.duration(), "behind"),
    };
    match off > SKEW {
        true => report.problem(
            &name,
            format!(
                "this machine is {} s {word} it: tokens and certificates are judged by the wrong time",
                off.as_secs()
            ),
            "set both clocks by NTP (`timedatectl`, chrony)",
        ),
        false => report.good(&name, format!("within {} s", SKEW.as_secs())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// What is said of a server whose clock is so far off.
    fn said(date: Option<SystemTime>) -> (bool, String) {
        let mut answer = Response::builder();
        if let Some(date) = date {
            answer = answer.header(header::DATE, httpdate::fmt_http_date(date));
        }
        let mut report = Report::default();
        clock(&mut report, "node", &answer.body(()).unwrap());
        (report.is_well(), report.told())
    }

    #[test]
    fn a_clock_that_is_wrong_is_a_problem_either_way() {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        assert!(said(Some(now)).0 && said(Some(now + Duration::from_secs(5))).0);
        for (date, words) in [(now + hour, "s behind it"), (now - hour, "s ahead of it")] {
            let (well, told) = said(Some(date));
            assert!(!well && told.contains(words) && told.contains("NTP"), "{told}");
        }
        assert!(said(None).1.contains("skipped"), "a server may say none");
    }

    #[test]
    fn certificates_that_end_are_said_before_they_do() {
        let shown = |days: i64| {
            let mut params = rcgen::CertificateParams::new(vec!["node.example.com".to_owned()]).unwrap();
            let day = Duration::from_secs(24 * 3600);
            params.not_before = (SystemTime::now() - 90 * day).into();
            let until = SystemTime::now() + Duration::from_secs(60);
            params.not_after = if days < 0 { until - day } else { until + day * days as u32 }.into();
            let key = rcgen::KeyPair::generate().unwrap();
            let der = params.self_signed(&key).unwrap().der().to_vec();
            let mut report = Report::default();
            let shown = Shown { version: None, alpn: Some("h2".to_owned()), chain: vec![der] };
            certificates(&mut report, "node", &shown);
            (report.is_well(), report.told())
        };
        assert!(shown(60).0 && shown(60).1.contains("ALPN h2") && !shown(60).1.contains("WARNING"));
        assert!(shown(5).0 && shown(5).1.contains("5 days left"));
        assert!(!shown(-1).0 && shown(-1).1.contains("not valid now"));
    }
}
