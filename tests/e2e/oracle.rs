//! The same random request goes to a recording service directly and through a node, or two, and an agent. What the service
//! reads and what the client reads may differ in the list of docs/request.md, "What is not passed as it came", and in
//! nothing else: `Seen::may_be_heard` and `Seen::may_be_read` are that list.
//!
//! `PIKO_ORACLE_CASES` says how many (200), `PIKO_ORACLE_SEED` begins where a failure began; a failing case is shrunk.

#![allow(clippy::print_stderr, reason = "a failed run can be run again by its seed")]

mod case;
mod recorder;
mod wire;

use std::net::SocketAddr;

use piko_test_support::program::{agent, cluster};
use piko_test_support::within;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use case::{Case, Version};
use recorder::Recorder;
use wire::Seen;

use crate::piko;

/// Enough to meet each pair of choices; 100,000 take an hour.
const CASES: u32 = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What the service and the client read.
async fn exchange(
    case: &Case,
    to: SocketAddr,
    recorder: &Recorder,
    direct: bool,
) -> Result<(Seen, Seen), String> {
    recorder.order(&case.answer);
    let answered = match case.version {
        Version::Http2 if !direct => wire::ask_2(to, case).await,
        _ => wire::ask_1(to, case).await,
    };
    let answer = answered.map_err(|error| format!("no answer: {error}"))?;
    if let Some((_, code)) = answer.fields.iter().find(|(name, _)| name == "x-piko-error") {
        return Err(format!("answered {code} instead of its service"));
    }
    let heard = recorder.heard().ok_or("the service has read nothing")?;
    Ok((heard, answer))
}

#[test]
fn a_request_through_the_tunnel_is_the_request_itself() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (nodes, recorder, _agent) = runtime.block_on(async {
        let nodes = cluster(piko(), 2, &["--proxy.access-log.disable"]).await;
        let recorder = Recorder::start().await;
        let endpoint = format!("oracle/{}", recorder.addr);
        let agent = agent(piko(), nodes[0].upstream, &endpoint, &["--access-log.disable"]);
        for node in &nodes {
            node.routes("oracle", 200).await;
        }
        (nodes, recorder, agent)
    });
    let cases = number("PIKO_ORACLE_CASES").and_then(|n| n.try_into().ok()).unwrap_or(CASES);
    let seed = number("PIKO_ORACLE_SEED").unwrap_or_else(rand_seed);
    eprintln!("PIKO_ORACLE_SEED={seed} PIKO_ORACLE_CASES={cases}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&case::cases(), |case| {
        runtime.block_on(within("one case", async {
            let direct = exchange(&case, recorder.addr, &recorder, true).await;
            let (heard, read) = direct.map_err(|e| TestCaseError::fail(format!("directly: {e}")))?;
            let through = exchange(&case, nodes[usize::from(case.relayed)].proxy, &recorder, false).await;
            let (heard_through, read_through) = through.map_err(TestCaseError::fail)?;
            let (heard, heard_through) = (heard.may_be_heard(), heard_through.may_be_heard());
            if heard != heard_through {
                let what = format!("the service reads\n{heard_through:#?}\ninstead of\n{heard:#?}");
                return Err(TestCaseError::fail(what));
            }
            let (read, read_through) = (read.may_be_read(&case), read_through.may_be_read(&case));
            if read != read_through {
                let what = format!("the client reads\n{read_through:#?}\ninstead of\n{read:#?}");
                return Err(TestCaseError::fail(what));
            }
            Ok(())
        }))
    });
    if let Err(failure) = outcome {
        panic!("PIKO_ORACLE_SEED={seed}: {failure}");
    }
}

/// A different one at each run.
fn rand_seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos().into()
}
