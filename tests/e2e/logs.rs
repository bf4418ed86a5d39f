//! What the logs of node and agent say of a request; and logs that cannot be written stop nothing.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};

use piko_test_support::client::{get, send};
use piko_test_support::program::{ByShell, Node, Program, agent, cluster};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr};
use serde_json::{Value, json};

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");

/// The first line that could not be written once ended the process, with exit code 101.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_below_the_log_stops_neither_start_nor_requests() {
    let program = ByShell::new(piko(), "", ">/dev/full 2>&1");
    let node = Node::start(&program.path, &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(&program.path, node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    for _ in 0..20 {
        assert_eq!(get(node.proxy, "/", &[NAMED]).await.unwrap().status, 200);
    }
    assert_eq!(node.program.log(), "", "nothing could be written");
}

/// The access log's line of the request for `path`.
async fn line(program: &Program, path: &str) -> Value {
    eventually(&format!("the line of {path} is there"), || async {
        let parsed = |line: &str| serde_json::from_str::<Value>(line).ok();
        program.log().lines().filter_map(parsed).find(|line| line["path"] == path)
    })
    .await
}

/// A person who reads one log finds the same request in the others, whichever node the client came by.
#[tokio::test]
async fn one_id_names_a_request_at_node_agent_and_service() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let agent =
        agent(piko(), nodes[0].upstream, &format!("my-endpoint/{},down/{}", service.addr, free_addr()), &[]);
    for (index, node) in nodes.iter().enumerate() {
        node.routes("my-endpoint", 200).await;
        let given = [NAMED, ("x-request-id", "order-7/a")];
        let (own, made) = (format!("/own-{index}"), format!("/made-{index}"));
        let answer = get(node.proxy, &own, &given).await.unwrap();
        let heard: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(heard["headers"]["x-request-id"], json!(["order-7/a"]));
        assert_eq!(answer.header("x-request-id"), "order-7/a");
        let answer = get(node.proxy, &made, &[NAMED]).await.unwrap();
        let heard: Value = serde_json::from_slice(&answer.body).unwrap();
        let id = heard["headers"]["x-request-id"][0].as_str().unwrap().to_owned();
        assert_eq!((id.len(), answer.header("x-request-id")), (32, &*id));
        for (path, id) in [(&own, "order-7/a"), (&made, &id)] {
            assert_eq!(line(&node.program, path).await["request_id"], *id);
            assert_eq!(line(&agent, path).await["request_id"], *id);
        }
        // What the client of a failed request quotes, whether node or agent answers.
        for (path, endpoint) in [("/failed", "nobody"), ("/refused", "down")] {
            let path = format!("{path}-{index}");
            let failed = eventually("it fails for good", || async {
                let answer =
                    get(node.proxy, &path, &[("x-piko-endpoint", endpoint), ("x-request-id", "a\"b")])
                        .await
                        .ok()?;
                let body: Value = serde_json::from_slice(&answer.body).unwrap();
                let code = ["endpoint_unknown", "service_refused"].contains(&answer.header("x-piko-error"));
                code.then_some((answer.header("x-request-id").to_owned(), body))
            })
            .await;
            assert_eq!((&*failed.0, &failed.1["request_id"]), ("a\"b", &json!("a\"b")), "{endpoint}");
            assert_eq!(line(&node.program, &path).await["request_id"], "a\"b");
        }
    }
}

/// A full pipe below the log, whose reader is stuck, held every request up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_the_log_that_stalls_costs_lines_and_no_requests() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Open, and not read.
    let mut reader = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let program = ByShell::new(piko(), "", &format!("2>'{}'", pipe.display()));
    let node = Node::start(&program.path, &[], &["--proxy.access-log.request-headers.allow-list=x-long"]);
    node.ready().await;
    let long = "x".repeat(60 << 10);
    let lost = || node.metric("piko_log_lines_lost_total");
    let before = lost().await;
    // The room for lines that wait has 4 MiB.
    for _ in 0..100 {
        let answer = get(node.proxy, "/", &[NAMED, ("x-long", &long)]).await.unwrap();
        assert_eq!(answer.status, 502);
    }
    let lost = lost().await - before;
    assert!((10.0..100.0).contains(&lost), "{lost} lines of 100 were lost");
    let said = tokio::task::spawn_blocking(move || {
        let mut lines = BufReader::new(&mut reader).lines().map_while(Result::ok);
        lines.find(|line| line.contains("log lines were lost"))
    });
    let said: Value = serde_json::from_str(&said.await.unwrap().unwrap()).unwrap();
    assert!(said["lines"].as_u64().is_some_and(|lines| (1..=100).contains(&lines)), "{said}");
}

#[tokio::test]
async fn lines_say_what_was_chosen_of_the_requests_that_were() {
    let fields = "path,status,bytes_in,bytes_out,protocol,user_agent,first_byte_ms,queue_ms";
    let fields = format!("--proxy.access-log.fields={fields}");
    let logs = ["--log.format=logfmt", fields.as_str(), "--proxy.access-log.min-status=500"];
    let node = Node::start(piko(), &[], &logs);
    node.ready().await;
    let service = Service::start("one").await;
    let logs =
        ["--log.format=text", "--access-log.fields=status,error", "--access-log.sample-one-in=1000000"];
    let endpoints = format!("my-endpoint/{},down/{}", service.addr, free_addr());
    let agent = agent(piko(), node.upstream, &endpoints, &logs);
    node.routes("my-endpoint", 200).await;
    assert_eq!(get(node.proxy, "/good", &[NAMED]).await.unwrap().status, 200);
    let agent_name = [("user-agent", "two \"words\""), ("x-piko-endpoint", "down")];
    let failed = eventually("the agent answers for its service", || async {
        let answer = get(node.proxy, "/bad", &agent_name).await.ok()?;
        (answer.header("x-piko-error") == "service_refused").then_some(answer)
    })
    .await;
    let line = eventually("the failed request is logged", || async {
        let log = node.program.log();
        log.lines()
            .find(|line| line.contains("path=/bad ") && line.contains("first_byte_ms"))
            .map(str::to_owned)
    })
    .await;
    let length = failed.body.len();
    let expected = format!("status=502 bytes_in=0 bytes_out={length} queue_ms=");
    assert!(line.contains(&expected), "{line}");
    assert!(line.contains(r#"protocol=HTTP/1.1 user_agent="two \"words\"" target=piko::access"#), "{line}");
    assert!(
        line.starts_with("ts=") && line.contains(" level=info msg=request ") && !line.contains("method"),
        "{line}"
    );
    assert!(!node.program.log().contains("/good"), "its status is too low");
    let said = eventually("the agent's log has the failure", || async {
        agent.log().lines().find(|line| line.contains("request status=502")).map(str::to_owned)
    })
    .await;
    assert!(said.ends_with("request status=502 error=\"service_refused\""), "{said}");
}

/// `Server-Timing` of a request for `path`, by name: milliseconds.
async fn timing(node: &Node, path: &str) -> BTreeMap<String, f64> {
    let answer = get(node.proxy, path, &[NAMED]).await.unwrap();
    assert_eq!(answer.status, 200);
    let parts = answer.header("server-timing").split(", ").filter_map(|part| part.split_once(";dur="));
    let number = |text: &str| text.split(';').next().unwrap().parse().unwrap();
    parts.map(|(name, rest)| (name.to_owned(), number(rest))).collect()
}

#[tokio::test]
async fn clients_read_where_the_time_went_where_the_node_is_to_say_so() {
    let nodes = cluster(piko(), 2, &["--proxy.server-timing"]).await;
    let silent = Node::start(piko(), &[nodes[0].gossip], &[]);
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    for node in nodes.iter().chain([&silent]) {
        node.routes("my-endpoint", 200).await;
    }
    for node in &nodes {
        let times = timing(node, "/slow/20").await;
        let names: Vec<_> = times.keys().map(String::as_str).collect();
        assert_eq!(names, ["piko-node", "piko-queue", "piko-upstream"], "said once, by the node asked");
        assert!(times["piko-upstream"] >= 20.0, "{times:?}");
    }
    assert_eq!(timing(&silent, "/").await, BTreeMap::new(), "off by default");
    // Of two agents, one cannot reach its service: requests that it got first are tried again.
    let _down = agent(piko(), nodes[1].upstream, &format!("my-endpoint/{}", free_addr()), &[]);
    eventually("a request is tried twice", || async {
        timing(&nodes[0], "/").await.contains_key("piko-retries").then_some(())
    })
    .await;
}

/// The line of a log with this message that has the trace.
async fn said(program: &Program, message: &str, trace: &str) -> Value {
    eventually(&format!("{message:?} is said"), || async {
        let parsed = |line: &str| serde_json::from_str::<Value>(line).ok();
        let log = program.log();
        log.lines().filter_map(parsed).find(|line| line["message"] == message && line["trace_id"] == trace)
    })
    .await
}

#[tokio::test]
async fn an_agents_lines_have_the_trace_and_the_bytes_as_the_nodes_have() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    nodes[1].routes("my-endpoint", 200).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [NAMED, ("traceparent", &*parent)];
    let answer = send(nodes[1].proxy, "POST", "/", &headers, "some words".into()).await.unwrap();
    assert_eq!(answer.status, 200);
    for program in [&nodes[1].program, &agent] {
        let line = said(program, "request", trace).await;
        assert_eq!(
            (&line["bytes_in"], &line["bytes_out"]),
            (&json!(10), &json!(answer.body.len())),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_tunnel_has_one_line_however_many_endpoints_it_has() {
    let node = &cluster(piko(), 1, &[]).await[0];
    let service = Service::start("one").await;
    let endpoints: Vec<_> = (0..10).map(|n| format!("e{n}/{}", service.addr)).collect();
    let _agent = agent(piko(), node.upstream, &endpoints.join(","), &[]);
    let line = eventually("the agent is named", || async {
        let parsed = |line: &str| serde_json::from_str::<Value>(line).ok();
        let log = node.program.log();
        log.lines().filter_map(parsed).find(|line| line["message"] == "agent connected")
    })
    .await;
    assert_eq!(line["endpoints"], "e0, e1, e2, e3, e4, e5, e6, e7 and 2 more");
    assert!(!node.program.log().contains("\"e9\""), "{}", node.program.log());
}
