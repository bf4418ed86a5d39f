//! What has to hold for any head of a client: what is taken means one thing, to another parser's eyes too, and
//! what goes on has framing of our own. Run by the test below and by `make fuzz` (tests/fuzz).

use http::{Method, Version, header};
use piko_tunnel::headers::{self, Framing};
use pingora_http::RequestHeader;

use super::endpoint::Domains;
use super::incoming::Incoming;
use super::outgoing::{self, Came};
use crate::route::EndpointKey;

/// The input is the head as it is on the wire, read by httparse as Pingora does.
pub fn client_head(input: &[u8]) {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut fields);
    if !matches!(parsed.parse(input), Ok(httparse::Status::Complete(_))) {
        return;
    }
    let (Some(method), Some(path), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return;
    };
    let Ok(mut head) = RequestHeader::build(method, path.as_bytes(), None) else { return };
    head.set_version(if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 });
    for field in parsed.headers.iter() {
        if head.append_header(field.name.to_owned(), field.value).is_err() {
            return;
        }
    }
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
    if incoming.upgrade.is_some() {
        assert!(version == 1 && head.method == Method::GET);
        assert!(matches!(incoming.body, Framing::Absent | Framing::Length(0)), "an upgrade has no body");
    }
    let Ok(endpoint) = incoming.endpoint(&head, &Domains::default()) else { return };
    let endpoint = EndpointKey { tenant: None, endpoint };
    let came = Came { from: None, scheme: "http" };
    let Ok(request) = outgoing::request(&head, &incoming, &endpoint, came) else { return };
    let onward = request.headers();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        assert!(!onward.contains_key(&name), "{name} goes on");
    }
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

#[cfg(test)]
mod tests {
    #[test]
    fn any_head() {
        piko_test_mutate::run("client_head", super::client_head);
    }
}
