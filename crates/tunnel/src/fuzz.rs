//! What has to hold for any bytes from outside: names, header rules, handshakes, control lines. Run by the tests
//! below and by `make fuzz` (tests/fuzz).

use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request};

use crate::control::{Message, take_line};
use crate::handshake::{self, Upgrade};
use crate::{EndpointId, headers};

/// A name is an endpoint exactly if it has 1 to 128 unreserved characters, `*.` before them or not, and is then
/// what was written.
pub fn endpoint_name(input: &[u8]) {
    let Ok(name) = std::str::from_utf8(input) else { return };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    let itself = name.strip_prefix("*.").unwrap_or(name);
    let right = name.len() <= 128 && !itself.is_empty() && itself.bytes().all(allowed);
    match name.parse::<EndpointId>() {
        Ok(id) => assert!(right && id.as_str() == name, "{name:?} is no endpoint"),
        Err(_) => assert!(!right, "{name:?} is an endpoint"),
    }
    let json = serde_json::to_string(name).expect("text can be written");
    assert_eq!(serde_json::from_str::<EndpointId>(&json).is_ok(), right, "the same from JSON");
}

/// After the header rules, nothing of the hop a message came over is left, and applying them again changes nothing.
pub fn header_rules(input: &[u8]) {
    let fields = fields(input);
    let mut clean = fields.clone();
    headers::strip_hop_by_hop(&mut clean);
    headers::strip_framing(&mut clean);
    headers::strip_private(&mut clean);
    headers::join_cookies(&mut clean);
    let gone = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::CONTENT_LENGTH];
    for name in gone.iter().chain(&headers::PRIVATE) {
        assert!(!clean.contains_key(name), "{name} is left");
    }
    assert!(clean.get_all(header::TE).iter().all(|value| value == "trailers"));
    assert!(clean.get_all(header::COOKIE).iter().count() <= 1);
    let mut again = clean.clone();
    headers::strip_hop_by_hop(&mut again);
    headers::strip_framing(&mut again);
    headers::strip_private(&mut again);
    headers::join_cookies(&mut again);
    assert_eq!(clean, again);
    if let Some((names, connection)) = headers::settle_connection(&fields) {
        assert!(!names.contains(&header::HOST) && !names.contains(&header::AUTHORIZATION), "{names:?}");
        assert!(connection.is_none_or(|value| value == "upgrade"));
    }
    if let Ok(Some(length)) = headers::content_length(&fields) {
        let words =
            fields.get_all(header::CONTENT_LENGTH).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
        for word in words {
            let word = std::str::from_utf8(word.trim_ascii()).expect("digits are text");
            assert!(word.trim_start_matches('0') == length.to_string().trim_start_matches('0'), "{word}");
        }
    }
    if let Some(names) = headers::announced_trailers(&fields) {
        let names = names.to_str().expect("names are text");
        assert!(
            names.split(", ").all(|name| !["content-length", "x-piko-error", "host"].contains(&name)),
            "{names}"
        );
    }
    let size: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    assert_eq!(headers::list_size(&fields), size);
}

/// A handshake is taken only with an upgrade asked for, and its answer names the same protocol.
pub fn handshake(input: &[u8]) {
    let (line, rest) = input.split_at(input.iter().position(|b| *b == b'\n').unwrap_or(input.len()));
    let mut words = line.split(|b| *b == b' ');
    let method = Method::from_bytes(words.next().unwrap_or_default()).unwrap_or(Method::GET);
    let Ok(uri) = http::Uri::try_from(words.next().unwrap_or_default()) else { return };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = fields(rest);
    let Ok(kind) = handshake::requested(&request) else { return };
    assert_eq!((request.method(), request.uri().path()), (&Method::GET, handshake::TUNNEL_PATH));
    let answer = handshake::accepted(kind, request.headers(), "node");
    let upgrade = answer.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    match kind {
        Upgrade::Tunnel => assert_eq!(upgrade, Some(handshake::UPGRADE_TOKEN)),
        Upgrade::WebSocket => {
            assert!(upgrade == Some("websocket") && answer.contains_key("sec-websocket-accept"))
        }
    }
}

/// Control lines are the same however they are cut into pieces, and a message is what it was after it is written.
pub fn control_lines(input: &[u8]) {
    let Some((&size, input)) = input.split_first() else { return };
    let lines = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut buffer = BytesMut::new();
        let mut lines = Vec::new();
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while let Ok(Some(line)) = take_line(&mut buffer) {
                lines.push(line);
            }
        }
        lines
    };
    let whole = lines(&mut std::iter::once(input));
    assert_eq!(whole, lines(&mut input.chunks(usize::from(size).max(1))));
    for line in whole {
        let Ok(message) = serde_json::from_slice::<Message>(&line) else { continue };
        let written = serde_json::to_vec(&message).expect("a message can be written");
        assert_eq!(serde_json::from_slice::<Message>(&written).expect("and read"), message);
    }
}

/// The header fields of an input, one `name: value` a line. What no parser would take is left out.
fn fields(input: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(200) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value[1..].trim_ascii()))
        {
            map.append(name, value);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use piko_test_mutate::run;

    #[test]
    fn any_name() {
        run("endpoint_name", super::endpoint_name);
    }

    #[test]
    fn any_header_fields() {
        run("header_rules", super::header_rules);
    }

    #[test]
    fn any_handshake() {
        run("handshake", super::handshake);
    }

    #[test]
    fn any_control_lines() {
        run("control_lines", super::control_lines);
    }
}
