//! Whatever a client and a service do to a connection, the next request on it arrives as it was sent.

use http::Request;

use super::recorder::Recorder;
use super::{Tunnel, read};

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"];
const ANSWERS: [(&str, u16); 14] = [
    ("ok", 200),
    ("early", 200),
    ("chunked", 200),
    ("none", 204),
    ("unmodified", 304),
    ("refused", 403),
    ("eof", 200),
    ("close", 200),
    ("identity", 200),
    ("both", 200),
    ("twice", 200),
    ("hints", 200),
    ("hundred", 200),
    ("switch", 101),
];

/// How a request is framed, and what becomes of it.
struct Framing {
    fields: &'static [(&'static str, &'static str)],
    body: Option<&'static str>,
    /// The stream stays open, as that of an upgrade does.
    open: bool,
    refused: Option<(u16, &'static str)>,
}

const UPGRADE: (&str, &str) = ("x-piko-upgrade", "websocket");
const TCP: (&str, &str) = ("x-piko-upgrade", "tcp");

fn framings() -> Vec<Framing> {
    let sound = |fields, body| Framing { fields, body, open: false, refused: None };
    let upgrade = |fields, refused| Framing { fields, body: None, open: true, refused };
    vec![
        sound(&[], None),
        sound(&[("content-length", "0")], None),
        sound(&[("content-length", "5")], Some("hello")),
        sound(&[("content-length", "5"), ("content-length", "5")], Some("hello")),
        sound(&[], Some("hello")),
        sound(&[("expect", "100-continue"), ("trailer", "x"), ("te", "trailers")], Some("hello")),
        Framing {
            fields: &[("content-length", "5"), ("content-length", "30")],
            body: Some("hello"),
            open: false,
            // By h2, which resets the stream; the agent would say 400.
            refused: Some((0, "")),
        },
        upgrade(&[UPGRADE], None),
        upgrade(&[UPGRADE, ("content-length", "0")], None),
        upgrade(&[UPGRADE, ("content-length", "30")], Some((400, "upgrade_with_body"))),
        upgrade(
            &[UPGRADE, ("expect", "100-continue"), ("content-length", "5")],
            Some((400, "upgrade_with_body")),
        ),
        upgrade(&[UPGRADE, ("x-piko-upgrade-body", "5")], Some((400, "upgrade_with_body"))),
        upgrade(&[TCP, ("x-piko-upgrade-body", "65537")], Some((413, "upgrade_body_too_large"))),
        // As `docker exec` asks. What follows the five bytes is the new protocol's, or nobody's.
        Framing { body: Some("hello"), ..upgrade(&[TCP, ("x-piko-upgrade-body", "5")], None) },
        // Less than was announced.
        upgrade(&[TCP, ("x-piko-upgrade-body", "60000")], Some((400, "bad_request"))),
    ]
}

#[tokio::test]
async fn the_next_request_on_a_pooled_connection_arrives_as_it_was_sent() {
    let service = Recorder::start().await;
    let tunnel = Tunnel::open(&[format!("e/{}", service.addr)]).await;
    let mut victims = 0;
    for method in METHODS {
        for (kind, status) in ANSWERS {
            for framing in framings() {
                let what = format!("{method} {kind} {:?} {:?}", framing.fields, framing.body);
                let path = format!("http://client.example/{kind}/attack");
                let mut request = Request::builder().method(method).uri(path);
                for (name, value) in framing.fields {
                    request = request.header(*name, *value);
                }
                let request = request.body(()).unwrap();
                let answer = match framing.open {
                    false => tunnel.ask(request, framing.body).await,
                    true => {
                        let (answer, mut stream) = tunnel.send(request, false).await;
                        // Were it read as a body, it would be a request of its own.
                        // Where a length is announced, h2 itself refuses other bytes.
                        let length = framing.fields.iter().find(|(name, _)| *name == "content-length");
                        let data = match length {
                            None => Some("GET /ok/smuggled HTTP/1.1\r\n\r\n"),
                            Some((_, "0")) => Some(""),
                            Some(_) => None,
                        };
                        if let Some(body) = framing.body {
                            let _ = stream.send_data(body.into(), false);
                        }
                        if let Some(data) = data {
                            let _ = stream.send_data(data.into(), true);
                        }
                        read(answer).await
                    }
                };
                let expected = match (framing.refused, kind, framing.open) {
                    (Some(refused), ..) => refused,
                    (None, "switch", false) => (502, "service_unasked_upgrade"),
                    (None, "switch", true) => (200, ""),
                    _ => (status, ""),
                };
                assert_eq!(answer.code(), expected, "{what}: {answer:?}");
                let bodyless = method == "HEAD" || status == 204 || status == 304;
                if framing.refused.is_none() && kind != "switch" {
                    assert_eq!(answer.body, if bodyless { "" } else { "ok" }, "{what}");
                    assert!(answer.whole, "{what}");
                }
                victims += 1;
                let victim = tunnel.get(&format!("/ok/victim-{victims}")).await;
                assert_eq!((victim.status, victim.body.as_str()), (200, "ok"), "after {what}");
                let read = service.requests();
                let (victims_connection, head, body) = read.last().expect("the service was asked");
                assert!(
                    head.starts_with(&format!("GET /ok/victim-{victims} HTTP/1.1\r\n")) && body.is_empty(),
                    "after {what}: {read:?}"
                );
                match (framing.refused, &read[..read.len() - 1]) {
                    (Some(_), []) => {}
                    (None, [(connection, head, body)]) => {
                        assert_eq!(body, framing.body.unwrap_or_default(), "{what}");
                        // One that an upgrade was tried on is not used again.
                        assert!(!framing.open || connection != victims_connection, "{what}");
                        assert!(!head.contains("expect:") && !head.contains("x-piko"), "{what}: {head}");
                    }
                    other => panic!("{what}: {other:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn what_a_service_sends_beyond_its_answer_reaches_nobody() {
    let service = Recorder::start().await;
    let tunnel = Tunnel::open(&[format!("e/{}", service.addr)]).await;
    for _ in 0..20 {
        assert_eq!(tunnel.get("/long/").await.body, "ok");
        let next = tunnel.get("/ok/").await;
        assert_eq!((next.status, next.body.as_str()), (200, "ok"));
    }
}

#[tokio::test]
async fn each_way_a_service_fails_has_its_code() {
    let service = Recorder::start().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tunnel = Tunnel::open(&[format!("e/{}", service.addr), format!("down/{nobody}")]).await;
    for (kind, expected) in [
        ("empty", (502, "service_closed")),
        ("garbage", (502, "service_bad_response")),
        ("tls", (502, "service_speaks_tls")),
        ("icy", (502, "service_bad_response")),
        ("lengths", (502, "service_bad_response")),
        ("gzip", (502, "service_bad_response")),
        ("large", (502, "service_headers_too_large")),
        ("switch", (502, "service_unasked_upgrade")),
        ("colon", (200, "")),
        ("many", (200, "")),
    ] {
        let answer = tunnel.get(&format!("/{kind}/")).await;
        assert_eq!(answer.code(), expected, "{kind}: {answer:?}");
        assert_eq!(tunnel.get("/ok/").await.body, "ok", "after {kind}");
    }
    // Once a service has sent many fields, there is room for them, whatever the method.
    let many = Request::post("http://x/many/").body(()).unwrap();
    assert_eq!(tunnel.ask(many, Some("body")).await.code(), (200, ""));
    let down = Request::get("http://x/").header("x-piko-listener", "down").body(()).unwrap();
    assert_eq!(tunnel.ask(down, None).await.code(), (502, "service_refused"));
    assert!(!tunnel.get("/short/").await.whole, "a body that breaks off is seen to");
    // No body where none may be, from the agent's own answers too.
    let head = Request::head("http://x/empty/").body(()).unwrap();
    let answer = tunnel.ask(head, None).await;
    assert_eq!((answer.code(), answer.body.as_str()), ((502, "service_closed"), ""));
}
