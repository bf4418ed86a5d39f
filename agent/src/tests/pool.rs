//! Which connection a request takes: idle ones that close, that are logged in, whose clients go away.

use std::time::Duration;

use http::Request;
use piko_test_support::eventually;

use super::recorder::{Read, Recorder};
use super::{Tunnel, head};

async fn start() -> (Recorder, Tunnel) {
    let service = Recorder::start().await;
    let tunnel = Tunnel::open(&[format!("e/{}", service.addr)]).await;
    (service, tunnel)
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://client.example{path}")).body(()).unwrap()
}

#[tokio::test]
async fn connections_are_used_again() {
    let (service, tunnel) = start().await;
    for n in 0..50 {
        assert_eq!(tunnel.get("/ok/").await.body, "ok");
        assert_eq!(tunnel.ask(post("/ok/"), Some("hello")).await.body, "ok", "{n}");
    }
    assert!(service.requests().iter().all(|(connection, ..)| *connection == 0));
}

/// The service closes an idle connection just as a request comes: what may be sent again is.
#[tokio::test]
async fn a_repeatable_request_that_meets_the_close_goes_on_a_new_connection() {
    let (service, tunnel) = start().await;
    for _ in 0..5 {
        assert_eq!(tunnel.get("/second/").await.code(), (200, ""));
    }
    let read = service.requests();
    // The first once, each other one on the connection that closed and on a new one.
    assert_eq!(read.len(), 9, "{read:?}");
    // What may have been done is not done twice.
    let answer = tunnel.ask(post("/second/"), Some("hello")).await;
    assert_eq!(answer.code(), (502, "service_closed"));
    assert_eq!(service.requests().len(), 1);
}

/// A connection that was closed while it was idle costs no request anything, whatever the method.
#[tokio::test]
async fn a_connection_that_closed_while_idle_is_not_used() {
    let (service, tunnel) = start().await;
    for n in 0..10 {
        // The close follows the answer, and nothing announces it.
        assert_eq!(tunnel.ask(post("/bye/"), Some("hello")).await.body, "ok");
        let mut seen = Vec::new();
        eventually("the service has closed", || {
            seen.extend(service.read());
            let closed = seen.contains(&Read::Closed(n));
            async move { closed.then_some(()) }
        })
        .await;
    }
    assert_eq!(tunnel.ask(post("/ok/"), Some("hello")).await.body, "ok");
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn idle_connections_are_left_before_the_service_closes_them() {
    let (service, tunnel) = start().await;
    assert_eq!(tunnel.get("/announce/").await.body, "ok");
    let mut seen = Vec::new();
    eventually("the agent closes the connection", || {
        seen.extend(service.read());
        let closed = seen.contains(&Read::Closed(0));
        async move { closed.then_some(()) }
    })
    .await;
}

/// NTLM and Negotiate log in a connection: the next one on it would be that user.
#[tokio::test]
async fn a_connection_that_is_logged_in_serves_nobody_else() {
    let (service, tunnel) = start().await;
    let with = |path: &str, authorization: &str| {
        let request = Request::get(format!("http://client.example{path}"));
        request.header("authorization", authorization).body(()).unwrap()
    };
    assert_eq!(tunnel.get("/ok/").await.body, "ok");
    for scheme in ["NTLM TlRM", "negotiate YII=", "Negotiate"] {
        assert_eq!(tunnel.ask(with("/ok/", scheme), None).await.body, "ok");
        assert_eq!(tunnel.get("/ok/").await.body, "ok");
        let used: Vec<_> = service.requests().into_iter().map(|(connection, ..)| connection).collect();
        assert_ne!(used[used.len() - 2], used[used.len() - 1], "{scheme}");
    }
    // Asked for, but not yet given: the connection may remember the first step.
    assert_eq!(tunnel.get("/ntlm/").await.status, 401);
    assert_eq!(tunnel.get("/ok/").await.body, "ok");
    let used: Vec<_> = service.requests().into_iter().map(|(connection, ..)| connection).collect();
    assert_ne!(used[0], used[1]);
    // A login of several steps cannot work: said instead of asked for again and again.
    let step = tunnel.ask(with("/ntlm2/", "NTLM TlRM"), None).await;
    assert_eq!(step.code(), (501, "service_connection_auth"));
}

/// All of one client's requests go on its connection once it has begun to log in, and no other client's do.
#[tokio::test]
async fn a_login_in_steps_has_a_connection_of_its_clients() {
    let (service, tunnel) = start().await;
    let from = |client: &str, addresses: &str, path: &str, step: Option<&str>| {
        let request = Request::get(format!("http://client.example{path}"));
        let request = request.header("x-piko-client", client).header("x-forwarded-for", addresses);
        let request = step.iter().fold(request, |r, step| r.header("authorization", *step));
        request.body(()).unwrap()
    };
    let used = || {
        let requests = service.requests();
        for (_, head, _) in &requests {
            assert!(!head.contains("x-piko-client"), "{head}");
        }
        requests.into_iter().map(|(connection, ..)| connection).collect::<Vec<_>>()
    };
    for client in ["anna", "bert"] {
        let ask = |path, step| tunnel.ask(from(client, "10.0.0.1", path, step), None);
        assert_eq!(ask("/ntlm2/", Some("NTLM step1")).await.status, 401);
        assert_eq!(ask("/ok/", Some("NTLM step3")).await.body, "ok");
        assert_eq!(ask("/ok/", None).await.body, "ok");
    }
    let connections = used();
    assert!(connections[..3].iter().all(|c| *c == connections[0]), "{connections:?}");
    assert!(connections[3..].iter().all(|c| *c == connections[3]), "{connections:?}");
    assert_ne!(connections[0], connections[3]);
    // Strangers, one without a name, one that a balancer puts on the same connection, one who begins anew.
    assert_eq!(tunnel.get("/ok/").await.body, "ok");
    assert_eq!(tunnel.ask(from("anna", "10.0.0.9", "/ok/", None), None).await.body, "ok");
    assert_eq!(tunnel.ask(from("carl", "10.0.0.1", "/ok/", Some("NTLM step1")), None).await.body, "ok");
    let strangers = used();
    for stranger in &strangers {
        assert!(!connections.contains(stranger), "{connections:?} {strangers:?}");
    }
    assert_eq!(tunnel.ask(from("anna", "10.0.0.1", "/ok/", None), None).await.body, "ok");
    assert_eq!(used(), [connections[0]], "still hers");
}

/// A logged in connection that has closed is replaced by one that is not.
#[tokio::test]
async fn a_held_connection_that_has_closed_costs_no_request() {
    let (service, tunnel) = start().await;
    let login = |path: &str| {
        let request = Request::get(format!("http://client.example{path}")).header("x-piko-client", "anna");
        request.header("authorization", "Negotiate YII=").body(()).unwrap()
    };
    for _ in 0..3 {
        assert_eq!(tunnel.ask(login("/second/"), None).await.code(), (200, ""));
    }
    assert_eq!(service.requests().len(), 5, "the second and third once more on a new connection");
    assert_eq!(tunnel.ask(login("/close/"), None).await.body, "ok");
    assert_eq!(tunnel.ask(login("/ok/"), None).await.body, "ok");
}

#[tokio::test]
async fn an_answer_ends_at_its_length() {
    let (service, tunnel) = start().await;
    // The service keeps this connection open: the answer ends all the same, and so does the connection.
    for n in 0..20 {
        let answer = tunnel.get("/identity/").await;
        assert_eq!((answer.body.as_str(), answer.whole), ("ok", true));
        let mut seen = Vec::new();
        eventually("the connection is closed", || {
            seen.extend(service.read());
            let closed = seen.contains(&Read::Closed(n));
            async move { closed.then_some(()) }
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_that_is_gone_ends_its_request() {
    let (service, tunnel) = start().await;
    let (answer, mut stream) = tunnel.send(post("/early/"), false).await;
    assert_eq!(head(answer).await.status(), 200);
    stream.send_data("half".into(), false).unwrap();
    stream.send_reset(h2::Reason::CANCEL);
    let mut seen = Vec::new();
    eventually("the service sees its connection end", || {
        seen.extend(service.read());
        let ended = seen.iter().any(|read| matches!(read, Read::Nonsense(_) | Read::Closed(0)));
        async move { ended.then_some(()) }
    })
    .await;
    tokio::time::timeout(Duration::from_secs(20), tunnel.get("/ok/")).await.unwrap();
}

#[tokio::test]
async fn an_upload_goes_on_after_its_answer_and_beside_it() {
    let (service, tunnel) = start().await;
    let (answer, mut stream) = tunnel.send(post("/early/"), false).await;
    // The answer comes while the request is still being sent, and is whole.
    let mut answer = head(answer).await;
    let data = answer.body_mut().data().await.unwrap().unwrap();
    assert_eq!(data, "ok");
    stream.send_data("hello".into(), true).unwrap();
    eventually("the service has read the request", || {
        let read = service.requests();
        async move { read.iter().any(|(_, _, body)| body == "hello").then_some(()) }
    })
    .await;
    assert_eq!(tunnel.get("/ok/").await.body, "ok");
    assert_eq!(service.requests()[0].0, 0, "its connection is used again");
}

#[tokio::test]
async fn the_protocol_of_a_listener_is_kept() {
    let service = Recorder::start().await;
    let mut config = crate::config::AgentConfig::default();
    for (endpoint, protocol) in
        [("e", crate::config::Protocol::Http), ("bytes", crate::config::Protocol::Tcp)]
    {
        let addr = service.addr.to_string();
        config.listeners.push(crate::config::ListenerConfig::new(endpoint, addr, protocol));
    }
    let tunnel = Tunnel::with(config).await;
    let connect = Request::connect("e").body(()).unwrap();
    let (answer, _stream) = tunnel.send(connect, false).await;
    let refused = head(answer).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["x-piko-error"]),
        (400, &"endpoint_not_tcp".parse().unwrap())
    );
    let http = Request::get("http://x/ok/").header("x-piko-listener", "bytes").body(()).unwrap();
    assert_eq!(tunnel.ask(http, None).await.code(), (400, "endpoint_not_http"));
    assert!(service.requests().is_empty(), "nothing reached the service");
}
