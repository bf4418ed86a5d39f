//! An exchange as a command for a shell: what it sends is what was sent, but for secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, header};

use super::exchange::Exchange;
use super::redact::Secrets;
use super::shown;

/// What proxies on the way have added: the next request gets its own.
const BY_PROXIES: [&str; 6] =
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "forwarded", "via"];

pub(super) fn command(exchange: &Exchange, secrets: &Secrets) -> String {
    let asked = &exchange.asked;
    // A URL is taken as it is: no `[a-z]` for many of them, no `/../` taken out.
    let mut words = vec!["curl --globoff --path-as-is".to_owned()];
    match asked.method {
        Method::GET => {}
        Method::HEAD => words.push("--head".into()),
        _ => words.push(format!("-X {}", quoted(asked.method.as_str()))),
    }
    words.push(quoted(&shown::url(exchange, secrets)));
    for (name, value) in secrets.fields(&asked.fields) {
        if name != header::HOST.as_str() && !BY_PROXIES.contains(&&*name) {
            // curl takes out a header with nothing behind its colon; with `;` it sends one that is empty.
            let line = if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") };
            words.push(format!("-H {}", quoted(&line)));
        }
    }
    let body = exchange.up.kept.lock().clone();
    if body.is_empty() {
        return words.join(" ");
    }
    if !asked.fields.contains_key(header::CONTENT_TYPE) {
        // It would say that a form comes.
        words.push("-H 'content-type:'".into());
    }
    match String::from_utf8(body) {
        Ok(text) if !text.contains('\0') => {
            // Not `--data-binary`, which takes what begins with `@` for the name of a file.
            words.push(format!("--data-raw {}", quoted(&text)));
            words.join(" ")
        }
        Ok(text) => packed(text.as_bytes(), &words),
        Err(e) => packed(e.as_bytes(), &words),
    }
}

/// Bytes that no shell takes as an argument.
fn packed(body: &[u8], words: &[String]) -> String {
    format!("echo {} | base64 -d | {} --data-binary @-", STANDARD.encode(body), words.join(" "))
}

/// One word for a POSIX shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use http::HeaderMap;

    use super::super::capture::{Seen, Way};
    use super::super::exchange::Asked;
    use super::super::ring::Ring;
    use super::*;
    use crate::config::InspectConfig;

    fn told(method: Method, path: &str, fields: &[(&str, &str)], body: &[u8]) -> String {
        let ring = Arc::new(Ring::new(&InspectConfig::default()));
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let path = path.parse().unwrap();
        let asked = Asked { method, path, host: "a.example".into(), fields: headers, upgrade: None };
        let seen = Seen::begin(&ring, "a", asked, None).unwrap();
        seen.tap(Way::Up).take(body);
        command(&ring.one(1).unwrap(), &ring.secrets)
    }

    /// The words that a real shell makes of a command: `curl` is a function that prints them.
    fn words(command: &str) -> Vec<String> {
        let script = format!("curl() {{ printf '%s\\0' \"$@\"; }}; {command}");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    #[test]
    fn nothing_in_a_request_escapes_the_quotes() {
        for evil in ["'; touch /tmp/x; '", "$(id)", "`id`", "\\", "a\nb", "!!", "@/etc/passwd", "''"] {
            let words = words(&told(Method::POST, "/a?b=[1]", &[("x-a", "it's")], evil.as_bytes()));
            assert_eq!(words.last().unwrap(), evil);
            assert!(
                words.contains(&"x-a: it's".to_owned())
                    && words.contains(&"http://a.example/a?b=[1]".to_owned())
            );
        }
    }

    #[test]
    fn what_is_sent_is_what_was_sent() {
        let https = [("x-forwarded-proto", "https"), ("authorization", "Basic abc"), ("x-empty", "")];
        let got = told(Method::GET, "/", &https, b"");
        assert_eq!(
            got,
            "curl --globoff --path-as-is 'https://a.example/' -H 'authorization: Basic ********' -H 'x-empty;'"
        );
        assert!(told(Method::HEAD, "/", &[], b"").contains(" --head "));
        let bytes = told(Method::PUT, "/", &[], b"\xff\0");
        assert!(
            bytes.starts_with("echo /wA= | base64 -d | curl ") && bytes.ends_with("--data-binary @-"),
            "{bytes}"
        );
    }
}
