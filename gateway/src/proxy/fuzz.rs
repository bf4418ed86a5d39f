//! What has to hold for any head of a client: what is taken means one thing, to another parser's eyes too, and
//! what goes on has framing of our own. Run by the test below and by `make fuzz` (tests/fuzz).

use http::{Method, header};
use piko_tunnel::headers::{self, Framing};

use super::endpoint::Domains;
use super::forwarded::Came;
use super::http1;
use super::incoming::{Incoming, Upgrade};
use super::outgoing;
use crate::config::TrustedProxies;
use crate::route::{Asked, EndpointKey};

/// The input is the head as it is on the wire. What is taken, httparse takes as well, and ends it at the same byte.
pub fn client_head(input: &[u8]) {
    let Some((mut head, len)) = http1::fuzz::head(input) else { return };
    let empty_lines = input.chunks(2).take_while(|line| line == b"\r\n").count();
    let begin = 2 * empty_lines;
    let mut fields = [httparse::EMPTY_HEADER; 1024];
    let mut parsed = httparse::Request::new(&mut fields);
    // httparse wants targets to be UTF-8.
    let Ok(status) = parsed.parse(&input[begin..]) else {
        let line = input[begin..].split(|byte| *byte == b'\r').next().unwrap_or_default();
        return assert!(std::str::from_utf8(line).is_err(), "httparse refuses it");
    };
    assert_eq!(status, httparse::Status::Complete(len - begin));
    assert_eq!(parsed.method, Some(head.method.as_str()));
    assert_eq!(parsed.headers.len(), head.headers.len());
    let version = parsed.version.unwrap_or_default();
    let values = |name: &str| -> Vec<&[u8]> {
        let named = parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii()).collect()
    };
    let Ok(incoming) = Incoming::parse(&head, false) else { return };
    assert!(values("host").len() <= 1, "two hosts");
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    match incoming.body {
        Framing::Absent => assert!(lengths.is_empty() && codings.is_empty()),
        Framing::Open => {
            assert!(version == 1 && lengths.is_empty() && codings.len() == 1);
            assert!(codings[0].eq_ignore_ascii_case(b"chunked"));
        }
        Framing::Length(length) => {
            let said = |value: &&[u8]| {
                let mut words = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                words.all(|word| {
                    std::str::from_utf8(word).ok().and_then(|word| word.parse().ok()) == Some(length)
                })
            };
            assert!(codings.is_empty() && !lengths.is_empty() && lengths.iter().all(said));
        }
    }
    if let Some(upgrade) = &incoming.upgrade {
        let (bytes, websocket) = match upgrade {
            Upgrade::Tcp(..) => (true, false),
            Upgrade::Service(protocols) => (false, headers::has_token(protocols, "websocket")),
        };
        assert!(version == 1 && (!bytes || head.method == Method::GET));
        let empty = matches!(incoming.body, Framing::Absent | Framing::Length(0));
        assert!(empty || !bytes && !websocket, "only other protocols begin with a body");
    }
    let Ok(asked) = incoming.asked(&head, &Domains::default()) else { return };
    let endpoint = match asked {
        Asked::Exact(endpoint) => endpoint,
        Asked::Under(name) | Asked::Host(name) => match name.split('.').next().unwrap_or_default().parse() {
            Ok(endpoint) => endpoint,
            Err(_) => return,
        },
    };
    let endpoint = EndpointKey { tenant: None, endpoint };
    let peer = Some(([192, 0, 2, 1], 1).into());
    let came = Came::settle(&mut head, peer, "http", &TrustedProxies::default());
    let Ok(request) = outgoing::request(&head, &incoming, &endpoint, &came) else { return };
    let onward = request.headers();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        assert!(!onward.contains_key(&name), "{name} goes on");
    }
    assert_eq!(onward["x-forwarded-for"], "192.0.2.1", "a stranger states nothing");
    let listener = onward.get_all(headers::LISTENER).iter().collect::<Vec<_>>();
    assert_eq!(listener, [endpoint.endpoint.as_str()], "whoever asks, we say for whom it is");
    let length = onward.get_all(header::CONTENT_LENGTH).iter().collect::<Vec<_>>();
    match incoming.body {
        Framing::Length(number) if incoming.upgrade.is_none() => {
            assert_eq!(length, [number.to_string().as_str()])
        }
        _ => assert!(length.is_empty() || length == ["0"], "{length:?}"),
    }
}

/// The input is a chunked body, and what follows it. However the reads split it, it is read alike.
pub fn client_body(input: &[u8]) {
    let whole = http1::fuzz::body(input, input.len().max(1));
    for step in [1, 2, 3, 7, 64] {
        assert_eq!(http1::fuzz::body(input, step), whole, "read by {step}");
    }
    if let Some((data, rest)) = whole {
        assert!(data.len() + rest.len() + 5 <= input.len(), "made up bytes");
        assert!(input.ends_with(&rest), "took bytes of the next request");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_head() {
        piko_test_mutate::run("client_head", super::client_head);
    }

    #[test]
    fn any_body() {
        piko_test_mutate::run("client_body", super::client_body);
    }
}
