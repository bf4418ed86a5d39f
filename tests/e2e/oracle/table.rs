//! Every method, in every version of HTTP, with every framing of its request and of its answer.

use super::case::{Answer, Body, Case, Chunks, Framing, Manner, Version};

const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "BREW"];
const VERSIONS: [Version; 3] = [Version::Http10, Version::Http11, Version::Http2];

/// Each framing with its body: none, a length of 0 and of more, chunks without and with trailers.
fn framings() -> [(Framing, &'static str); 5] {
    let chunks = |trailers: &[(&str, &str)]| {
        let trailers = trailers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Framing::Chunked(Chunks { size: 3, trailers, announced: true })
    };
    [
        (Framing::None, ""),
        (Framing::Length, ""),
        (Framing::Length, "ten bytes."),
        (chunks(&[]), "ten bytes."),
        (chunks(&[("x-t-sum", "a")]), "ten bytes."),
    ]
}

/// Statuses whose answers may be framed so.
fn answers() -> Vec<(u16, Framing, &'static str)> {
    let mut all =
        vec![(204, Framing::None, ""), (304, Framing::None, ""), (200, Framing::Close, "to the end")];
    let [_, framed @ ..] = framings();
    for (framing, body) in framed {
        all.extend([200, 401, 503].map(|status| (status, framing.clone(), body)));
    }
    all
}

/// One line of the table after the other, by this node and by that.
pub(super) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for method in METHODS {
        for version in VERSIONS {
            for (framing, body) in framings() {
                // HTTP/1.0 knows no chunks.
                if version == Version::Http10 && matches!(framing, Framing::Chunked(_)) {
                    continue;
                }
                for (status, answered, answer) in answers() {
                    all.push(Case {
                        version,
                        relayed: all.len() % 2 == 1,
                        method,
                        target: "/a?b".into(),
                        fields: vec![("Accept".into(), "*/*".into())],
                        nominated: None,
                        te: true,
                        manner: Manner::Plain,
                        framing: framing.clone(),
                        body: Body(body.into()),
                        pace: Vec::new(),
                        answer: Answer {
                            early: false,
                            old: false,
                            hints: Vec::new(),
                            status,
                            fields: vec![("Server".into(), "a table".into())],
                            nominated: None,
                            framing: answered,
                            body: Body(answer.into()),
                            pace: Vec::new(),
                        },
                    });
                }
            }
        }
    }
    all
}
