//! The same random request goes to a recording service directly and through a node, or two, and an agent. What the service
//! reads and what the client reads may differ in the list of docs/request.md, "What is not passed as it came", and in
//! nothing else: `may_be_heard` and `may_be_read` are that list.
//!
//! `PIKO_ORACLE_CASES` says how many, `PIKO_ORACLE_SEED` begins where a failure began; a failing case is shrunk.

#![allow(clippy::print_stderr, reason = "a failed run can be run again by its seed")]

mod ask;
mod case;
mod recorder;
mod recorder_h2;
mod table;
mod wire;

use std::net::SocketAddr;

use piko_test_support::program::{Node, Program, agent, cluster};
use piko_test_support::within;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use case::{Body, Case, Fields, Framing, Version, nominated};
use recorder::Recorder;
use wire::Seen;

use crate::piko;

/// Enough to meet each pair of choices, in a few seconds; 100,000 take half an hour.
const CASES: u32 = 600;

/// Of one connection, not of the message (RFC 9110, section 7.6.1), and its framing, which each hop writes anew.
const CONNECTION: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// A target as tunnels carry it.
fn carried(target: &str) -> String {
    let query = target.find('?').unwrap_or(target.len());
    let encoded = |part: &str, not_here: &[char]| {
        let utf8 = String::from_utf8(wire::bytes(part)).is_ok();
        let one = |char: char| match not_here.contains(&char) || !utf8 && !char.is_ascii() {
            true => format!("%{:02X}", u32::from(char)),
            false => char.to_string(),
        };
        part.chars().map(one).collect::<String>()
    };
    encoded(&target[..query], &['<', '>', '`']) + &encoded(&target[query..], &['<', '>', '"'])
}

/// Is it an id that a node takes from a client?
fn is_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.chars().all(|char| char.is_ascii_graphic())
}

/// `x-request-id` is the client's one, where it is good; else each service reads one that the node made.
fn settle_id(seen: &mut Seen, case: &Case, direct: bool) -> Result<(), String> {
    const ID: &str = "x-request-id";
    let of = |fields: &Fields| {
        let ids = fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case(ID));
        ids.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    let nominated = nominated(&case.fields, case.nominated).is_some_and(|name| name.eq_ignore_ascii_case(ID));
    if matches!(&of(&case.fields)[..], [id] if is_id(id)) && !nominated {
        return Ok(());
    }
    let read = of(&seen.fields);
    if !direct && !matches!(&read[..], [id] if id.len() == 32 && is_id(id)) {
        return Err(format!("the service reads {read:?} for an x-request-id"));
    }
    seen.fields.retain(|(name, _)| name != ID);
    Ok(())
}

/// The list, for requests.
fn may_be_heard(mut seen: Seen, case: &Case) -> Seen {
    seen.line = match seen.line.split_once(' ') {
        Some((method, target)) => format!("{method} {}", carried(target)),
        None => seen.line,
    };
    let nominated = nominated(&case.fields, case.nominated).map(str::to_ascii_lowercase);
    let asked = seen.field("upgrade").map(str::to_owned);
    seen.fields.retain(|(name, _)| {
        !CONNECTION.contains(&name.as_str())
            && !name.starts_with("x-forwarded-")
            && !matches!(name.as_str(), "x-piko-endpoint" | "x-real-ip" | "forwarded" | "expect")
            && !name.contains(['_', '"'])
            && nominated.as_ref() != Some(name)
    });
    seen.fields.extend(asked.map(|protocol| ("upgrade".to_owned(), protocol)));
    let length = case.framing == Framing::Length;
    seen.fields.retain(|(name, _)| name != "content-length" || length);
    // Several are one (RFC 9113, section 8.2.3).
    let cookies: Vec<_> =
        seen.fields.iter().filter(|(name, _)| name == "cookie").map(|(_, value)| value.clone()).collect();
    seen.fields.retain(|(name, _)| name != "cookie");
    if !cookies.is_empty() {
        seen.fields.push(("cookie".into(), cookies.join("; ")));
    }
    if !matches!(&case.framing, Framing::Chunked(chunks) if chunks.announced) {
        seen.trailers.clear();
    }
    settled(seen)
}

/// The list, for answers.
fn may_be_read(mut seen: Seen, case: &Case) -> Seen {
    let nominated = nominated(&case.answer.fields, case.answer.nominated).map(str::to_ascii_lowercase);
    let nominated = nominated.filter(|_| !case.switches());
    let own_id = case.answer.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("x-request-id"));
    let dated = case.answer.fields.iter().any(|(name, _)| name == "Date");
    let length = case.answer.framing == Framing::Length && !case.switches();
    let switched = seen.field("upgrade").filter(|_| seen.line == "101").map(str::to_owned);
    seen.fields.retain(|(name, _)| {
        !CONNECTION.contains(&name.as_str())
            && (name != "date" || dated)
            && (name != "x-request-id" || own_id)
            && (name != "content-length" || length)
            && nominated.as_ref() != Some(name)
    });
    seen.fields.extend(switched.map(|protocol| ("upgrade".to_owned(), protocol)));
    let announced = matches!(&case.answer.framing, Framing::Chunked(chunks) if chunks.announced);
    match case.version {
        Version::Http10 => {
            seen.trailers.clear();
            seen.hints.clear();
        }
        Version::Http11 if !case.te && !announced => seen.trailers.clear(),
        _ => {}
    }
    settled(seen)
}

/// The order of fields of different names means nothing (RFC 9110, section 5.3).
fn settled(mut seen: Seen) -> Seen {
    let sort = |fields: &mut Fields| fields.sort_by(|a, b| a.0.cmp(&b.0));
    sort(&mut seen.fields);
    sort(&mut seen.trailers);
    seen.hints.iter_mut().for_each(sort);
    seen
}

/// What the service and the client read, as far as it has to be the same.
async fn exchange(
    case: &Case,
    to: SocketAddr,
    recorder: &Recorder,
    direct: bool,
) -> Result<(Seen, Seen), String> {
    recorder.order(&case.answer);
    let by_2 = if direct { recorder.speaks_h2 } else { case.version == Version::Http2 };
    let answered = match case.version {
        _ if by_2 => ask::by_2(to, case).await,
        version => {
            let stays = version != Version::Http10 && !case.answer.early && !direct;
            ask::by_1(to, case, stays).await
        }
    };
    let answer = answered.map_err(|error| format!("no answer: {error}"))?;
    if let Some(code) = answer.field("x-piko-error") {
        return Err(format!("answered {code} instead of its service"));
    }
    let mut heard = recorder.heard().ok_or("the service has read nothing")?;
    settle_id(&mut heard, case, direct)?;
    if case.answer.early {
        heard.body = Body::default();
    }
    Ok((may_be_heard(heard, case), may_be_read(answer, case)))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// A different one at each run.
fn some_seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos().into()
}

/// A recording service, and two nodes and an agent on the way to it.
struct Lab {
    runtime: tokio::runtime::Runtime,
    nodes: Vec<Node>,
    recorder: Recorder,
    _agent: Program,
}

impl Lab {
    /// `h2`: its service speaks HTTP/2.
    fn open(h2: bool) -> Lab {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (nodes, recorder, agent) = runtime.block_on(async {
            // A service that answers 503 as it was ordered stays in use: nodes set none aside that is the only one.
            let nodes = cluster(piko(), 2, &["--proxy.access-log.disable"]).await;
            let recorder = if h2 { Recorder::start_h2().await } else { Recorder::start().await };
            let scheme = if h2 { "h2c" } else { "http" };
            let endpoint = format!("oracle/{scheme}://{}", recorder.addr);
            let agent = agent(piko(), nodes[0].upstream, &endpoint, &["--access-log.disable"]);
            for node in &nodes {
                node.routes("oracle", 200).await;
            }
            (nodes, recorder, agent)
        });
        Lab { runtime, nodes, recorder, _agent: agent }
    }

    /// Sends a case both ways. Fails where service or client read something else than directly.
    fn compare(&self, case: &Case) -> Result<(), String> {
        self.runtime.block_on(within("one case", async {
            let direct = exchange(case, self.recorder.addr, &self.recorder, true).await;
            let (heard, read) = direct.map_err(|e| format!("directly: {e}"))?;
            let node = &self.nodes[usize::from(case.relayed)];
            let (heard_through, read_through) = exchange(case, node.proxy, &self.recorder, false).await?;
            if heard != heard_through {
                return Err(format!("the service reads\n{heard_through:#?}\ninstead of\n{heard:#?}"));
            }
            if read != read_through {
                return Err(format!("the client reads\n{read_through:#?}\ninstead of\n{read:#?}"));
            }
            Ok(())
        }))
    }
}

/// Random cases of `strategy`, by a service that speaks HTTP/2 or 1.
fn compare_all(h2: bool, strategy: &impl Strategy<Value = Case>) {
    let lab = Lab::open(h2);
    let cases = number("PIKO_ORACLE_CASES").and_then(|n| n.try_into().ok()).unwrap_or(CASES);
    let seed = number("PIKO_ORACLE_SEED").unwrap_or_else(some_seed);
    eprintln!("PIKO_ORACLE_SEED={seed} PIKO_ORACLE_CASES={cases}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(strategy, |case| lab.compare(&case).map_err(TestCaseError::fail));
    if let Err(failure) = outcome {
        panic!("PIKO_ORACLE_SEED={seed}: {failure}");
    }
}

#[test]
fn a_request_through_the_tunnel_is_the_request_itself() {
    compare_all(false, &case::cases());
}

#[test]
fn a_request_to_an_http2_service_is_the_request_itself() {
    compare_all(true, &case::cases_for_h2_services());
}

/// What holds for one method, version and framing holds for all, whatever the service speaks.
#[test]
fn each_method_version_and_framing_passes_as_it_is() {
    for h2 in [false, true] {
        let lab = Lab::open(h2);
        for case in table::cases() {
            if let Err(difference) = lab.compare(&case) {
                panic!("HTTP/2 service: {h2}\n{case:#?}\n{difference}");
            }
        }
    }
}
