//! What a browser reads where programs read JSON: the same words and code, as a page of ours or of the operator's.
//!
//! Every page is made at the start. Nothing of a request is on one, so nothing has to be escaped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use piko_tunnel::failure::Failure as AgentFailure;
use piko_tunnel::{grpc, headers};
use pingora_error::Result;
use pingora_http::ResponseHeader;

use crate::error::Failure;

const OWN: &str = include_str!("page.html");
/// Largest file of a page: it is sent with each error, and stays in memory once for each code.
const MAX_PAGE: u64 = 256 << 10;
/// Our page loads nothing and runs nothing, also if somebody should get something into it.
const OWN_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// A page for each code.
#[derive(Debug)]
pub struct Pages {
    /// Of failures of a node, and of agents: one code may have words of its own at each.
    nodes: HashMap<&'static str, Page>,
    agents: HashMap<&'static str, Page>,
}

/// A directory of pages cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// It, or a file in it, cannot be read.
    #[error("proxy.error_pages.dir: cannot read {path}: {source}")]
    Read {
        /// The directory or file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A page that is too large.
    #[error("proxy.error_pages.dir: {path} has {size} bytes; a page may have 256 KiB")]
    TooLarge {
        /// The file that is too large.
        path: PathBuf,
        /// How many bytes it has.
        size: u64,
    },
    /// Its name says of no error that it is for it.
    #[error(
        "proxy.error_pages.dir: {path} is for no error; name it CODE.html or STATUS.html, after docs/errors.md, or \
         error.html for all others"
    )]
    Name {
        /// The file with that name.
        path: PathBuf,
    },
}

#[derive(Debug)]
pub(super) struct Page {
    body: Bytes,
    own: bool,
}

struct Row {
    status: StatusCode,
    code: &'static str,
    words: &'static str,
}

impl Pages {
    /// The pages of a directory, and ours where it has none. Without a directory, all are ours.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, or is named after no error: it would never be seen.
    pub fn load(dir: Option<&Path>) -> Result<Pages, PagesError> {
        let nodes = Failure::ALL.iter().map(|failure| failure.reply());
        let nodes: Vec<_> =
            nodes.map(|row| Row { status: row.status, code: row.code, words: row.words }).collect();
        let agents = AgentFailure::ALL.iter().map(|failure| failure.row());
        let agents: Vec<_> =
            agents.map(|row| Row { status: row.status, code: row.code, words: row.words }).collect();
        let known = |name: &str| {
            name == "error"
                || nodes.iter().chain(&agents).any(|row| row.code == name || row.status.as_str() == name)
        };
        let files = dir.map(|dir| read(dir, &known)).transpose()?.unwrap_or_default();
        let make = |rows: Vec<Row>| rows.into_iter().map(|row| (row.code, row.page(&files))).collect();
        Ok(Pages { nodes: make(nodes), agents: make(agents) })
    }

    /// The page of a failure of this node. Returns `None` if the client does not ask for pages.
    pub(super) fn of_node(&self, code: &str, request: &HeaderMap) -> Option<&Page> {
        self.nodes.get(code).filter(|_| wants_page(request))
    }

    /// The same for an answer that an agent made.
    pub(super) fn of_agent(&self, answer: &ResponseHeader, request: &HeaderMap) -> Option<&Page> {
        let code = answer.headers.get(headers::ERROR)?.to_str().ok()?;
        self.agents.get(code).filter(|_| wants_page(request))
    }
}

impl Page {
    /// Makes the head of an answer with another body the page's, and gives its body.
    pub(super) fn settle(&self, head: &mut ResponseHeader) -> Result<Bytes> {
        head.insert_header(header::CONTENT_TYPE, "text/html; charset=utf-8")?;
        head.insert_header(header::CONTENT_LENGTH, self.body.len())?;
        head.insert_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
        // The next answer may be the service's, and to another `Accept` it is JSON.
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        if self.own {
            head.insert_header(header::CONTENT_SECURITY_POLICY, OWN_POLICY)?;
        }
        Ok(self.body.clone())
    }
}

impl Row {
    /// By code, else by status, else what is for all, else ours.
    fn page(&self, files: &HashMap<String, String>) -> Page {
        let file = [self.code, self.status.as_str(), "error"].into_iter().find_map(|name| files.get(name));
        let text = file.map_or(OWN, String::as_str);
        let text = text.replace("{{status}}", self.status.as_str());
        let text = text.replace("{{code}}", self.code).replace("{{words}}", self.words);
        Page { body: text.into(), own: file.is_none() }
    }
}

/// The pages in a directory, by name without `.html`. Other files may lie there, too.
fn read(dir: &Path, known: &dyn Fn(&str) -> bool) -> Result<HashMap<String, String>, PagesError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| PagesError::Read { path, source }
    };
    let mut files = HashMap::new();
    for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if path.extension().is_none_or(|extension| extension != "html") {
            continue;
        }
        let Some(name) = path.file_stem().and_then(|stem| stem.to_str()).filter(|name| known(name)) else {
            return Err(PagesError::Name { path });
        };
        let size = std::fs::metadata(&path).map_err(failed(&path))?.len();
        if size > MAX_PAGE {
            return Err(PagesError::TooLarge { path, size });
        }
        files.insert(name.to_owned(), std::fs::read_to_string(&path).map_err(failed(&path))?);
    }
    Ok(files)
}

/// Does the request name `text/html` among what it takes? Browsers do when they open a page, and not when a script or
/// an image asks. gRPC has statuses of its own.
fn wants_page(request: &HeaderMap) -> bool {
    let named = request.get_all(header::ACCEPT).iter().any(accepts_html);
    named && grpc::asked(request).is_none()
}

fn accepts_html(accept: &HeaderValue) -> bool {
    accept.as_bytes().split(|byte| *byte == b',').any(|range| {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let html = parts.next().is_some_and(|media| media.eq_ignore_ascii_case(b"text/html"));
        html && !parts.any(is_no_weight)
    })
}

/// `q=0`, `q=0.000`: not that (RFC 9110, section 12.4.2).
fn is_no_weight(parameter: &[u8]) -> bool {
    let weight = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="));
    weight.is_some_and(|weight| weight.iter().all(|byte| matches!(byte, b'0' | b'.')))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn accept(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, value.parse().unwrap())])
    }

    #[test]
    fn a_page_is_for_those_who_name_html() {
        let firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for (value, wants) in [
            (firefox, true),
            ("application/json, Text/HTML ; q=0.5", true),
            ("*/*", false),
            ("text/*", false),
            ("application/json", false),
            ("text/html;q=0, */*", false),
            ("text/html; q=0.000", false),
            ("text/htmlx", false),
            ("", false),
        ] {
            assert_eq!(wants_page(&accept(value)), wants, "{value:?}");
        }
        let mut call = accept(firefox);
        call.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc-web"));
        assert!(!wants_page(&call), "gRPC-Web comes from a browser, and reads no page");
    }

    fn page(pages: &Pages, code: &str) -> (ResponseHeader, String) {
        let page = pages.of_node(code, &accept("text/html")).unwrap();
        let mut head = ResponseHeader::build(502, None).unwrap();
        let body = page.settle(&mut head).unwrap();
        (head, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn every_failure_has_a_page_with_its_words_and_code() {
        let pages = Pages::load(None).unwrap();
        for failure in Failure::ALL {
            let reply = failure.reply();
            let (head, text) = page(&pages, reply.code);
            assert!(text.contains(reply.words) && text.contains(reply.code), "{text}");
            assert!(!text.contains("{{"), "{text}");
            assert!(!reply.words.contains(['<', '&', '"']), "{}", reply.words);
            assert_eq!(head.headers[header::CONTENT_LENGTH], text.len().to_string());
            assert!(head.headers.contains_key(header::CONTENT_SECURITY_POLICY));
        }
        for failure in AgentFailure::ALL {
            let row = failure.row();
            let mut answer = ResponseHeader::build(row.status, None).unwrap();
            answer.insert_header(headers::ERROR, row.code).unwrap();
            let body = &pages.of_agent(&answer, &accept("text/html")).unwrap().body;
            let text = std::str::from_utf8(body).unwrap();
            assert!(text.contains(row.words) && text.contains(row.code), "{text}");
            assert!(!row.words.contains(['<', '&', '"']), "{}", row.words);
        }
    }

    #[test]
    fn files_replace_pages_by_code_then_by_status_then_all() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("no_upstream.html", "by code {{code}}");
        write("502.html", "by status {{status}}");
        write("error.html", "all {{words}}");
        write("logo.svg", "not a page");
        let pages = Pages::load(Some(dir.path())).unwrap();
        assert_eq!(page(&pages, "no_upstream").1, "by code no_upstream");
        assert_eq!(page(&pages, "endpoint_unknown").1, "by status 502");
        let (head, text) = page(&pages, "draining");
        assert_eq!(text, format!("all {}", Failure::Draining.reply().words));
        let policy = head.headers.get(header::CONTENT_SECURITY_POLICY);
        assert_eq!(policy, None, "what a page of the operator's loads is the operator's to say");
    }

    #[test]
    fn a_directory_that_is_no_good_is_refused() {
        let refused = |dir: &Path| Pages::load(Some(dir)).unwrap_err().to_string();
        let dir = tempfile::tempdir().unwrap();
        assert!(refused(&dir.path().join("none")).contains("cannot read"));
        let typo = dir.path().join("no_upstraem.html");
        std::fs::write(&typo, "x").unwrap();
        assert!(refused(dir.path()).contains("no_upstraem.html is for no error"));
        std::fs::remove_file(typo).unwrap();
        std::fs::write(dir.path().join("error.html"), vec![b'x'; (MAX_PAGE + 1) as usize]).unwrap();
        assert!(refused(dir.path()).contains("262145 bytes"));
        std::fs::write(dir.path().join("error.html"), [0xff, 0xfe]).unwrap();
        assert!(refused(dir.path()).contains("cannot read"), "not UTF-8");
    }
}
