//! The inspector's port: its routes, and the page that uses them.
//!
//! | Route | What it is |
//! |---|---|
//! | `GET /`, `/inspect.js`, `/inspect.css` | the page |
//! | `GET /api/requests?FILTER` | a list, the newest first |
//! | `GET /api/requests/ID` | one, whole |
//! | `GET /api/requests/ID/request`, `…/response` | its body alone; packed as it came, where the asker can open that |
//! | `GET /api/requests/ID/curl` | as a command |
//! | `POST /api/requests/ID/replay` | once more, with what the JSON changes |
//! | `DELETE /api/requests` | forget all |
//! | `GET /api/har?FILTER` | as an HTTP Archive |
//! | `GET /api/news?after=VERSION` | waits until there is something new |
//! | `GET /api/token` | what a write has to carry |

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::exchange::{Exchange, Recording};
use super::filter::Filter;
use super::replay::{Edit, Replays};
use super::ring::Ring;
use super::{curl, guard, har, shown};
use crate::own_port::{self, Serving};
use crate::service::Services;
use crate::threads::Threads;

/// The page. It is the same for everybody: what it shows, and its token, its script asks for.
const PAGE: &str = include_str!("page/index.html");
const SCRIPT: &str = include_str!("page/inspect.js");
const STYLE: &str = include_str!("page/inspect.css");
/// Ports that are tried where the one that is wanted is taken.
const NEXT: u16 = 16;
/// Largest body of a request, bytes: an edited one.
const MAX_EDIT: usize = 4 << 20;
/// How long one may take to come.
const EDIT_TIME: Duration = Duration::from_secs(10);
/// How long an asker waits for news: less than any proxy in between would.
const WAIT: Duration = Duration::from_secs(25);
/// Codings that browsers open.
const CODINGS: [&str; 5] = ["gzip", "x-gzip", "deflate", "br", "zstd"];

/// What the port answers from.
pub(crate) struct Desk {
    ring: Arc<Ring>,
    services: Services,
    threads: Arc<Threads>,
    replays: Replays,
    token: String,
}

/// The port, or one of the next, or any: an agent does not stay away for its inspector.
///
/// # Errors
/// If the address is none of this machine's.
pub(crate) fn bind(wanted: SocketAddr) -> std::io::Result<TcpListener> {
    let next = (0..=NEXT).map(|n| wanted.port().saturating_add(n)).chain([0]);
    let mut taken = None;
    for port in next {
        match TcpListener::bind((wanted.ip(), port)) {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => taken = Some(e),
            bound => return bound,
        }
    }
    Err(taken.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into()))
}

/// Serves the inspector until what it returns is dropped.
pub(crate) fn serve(
    listener: TcpListener,
    ring: Arc<Ring>,
    services: Services,
    threads: Arc<Threads>,
) -> std::io::Result<Serving> {
    let token = format!("{:032x}", rand::random::<u128>());
    let desk = Arc::new(Desk { ring, services, threads, replays: Replays::new(), token });
    own_port::serve(listener, "inspect", move |request| {
        let desk = desk.clone();
        async move { desk.answer(request).await }
    })
}

type Answer = Result<Response<Full<Bytes>>, (StatusCode, String)>;

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let page = matches!(request.uri().path(), "/");
        let answered = match guard::check(request.method(), request.headers(), page, &self.token) {
            Ok(()) => self.route(request).await,
            Err(guard::Refused(status, words)) => Err((status, words.to_owned())),
        };
        let mut response = answered.unwrap_or_else(|(status, words)| {
            let mut response = json(&json!({ "error": words }));
            *response.status_mut() = status;
            response
        });
        guard::harden(response.headers_mut());
        response
    }

    async fn route(&self, request: Request<Incoming>) -> Answer {
        let uri = request.uri().clone();
        let query = uri.query().unwrap_or_default();
        let path: Vec<&str> = uri.path().split('/').skip(1).collect();
        match (request.method(), &path[..]) {
            (&Method::GET, [""]) => Ok(typed(PAGE, "text/html; charset=utf-8")),
            (&Method::GET, ["inspect.js"]) => Ok(typed(SCRIPT, "text/javascript; charset=utf-8")),
            (&Method::GET, ["inspect.css"]) => Ok(typed(STYLE, "text/css; charset=utf-8")),
            (&Method::GET, ["api", "token"]) => Ok(json(&json!({ "token": self.token }))),
            (&Method::GET, ["api", "news"]) => Ok(json(&self.news(query).await?)),
            (&Method::GET, ["api", "har"]) => {
                let mut found = self.found(query)?;
                found.reverse();
                Ok(json(&har::archive(found.iter().map(|one| &**one), &self.ring.secrets)))
            }
            (&Method::GET, ["api", "requests"]) => {
                let found = self.found(query)?;
                let lines: Vec<_> = found.iter().map(|one| shown::line(one, &self.ring.secrets)).collect();
                let mut list = self.state();
                list["requests"] = lines.into();
                Ok(json(&list))
            }
            (&Method::DELETE, ["api", "requests"]) => {
                self.ring.clear();
                Ok(json(&self.state()))
            }
            (&Method::GET, ["api", "requests", id]) => {
                Ok(json(&shown::whole(&*self.one(id)?, &self.ring.secrets)))
            }
            (&Method::GET, ["api", "requests", id, "curl"]) => {
                let command = curl::command(&*self.one(id)?, &self.ring.secrets);
                Ok(typed(format!("{command}\n"), "text/plain; charset=utf-8"))
            }
            (&Method::GET, ["api", "requests", id, side @ ("request" | "response")]) => {
                let one = self.one(id)?;
                let accepted = request.headers().get(header::ACCEPT_ENCODING);
                let accepted = accepted.and_then(|value| value.to_str().ok()).unwrap_or_default();
                Ok(body(&one, *side == "request", accepted))
            }
            (&Method::POST, ["api", "requests", id, "replay"]) => {
                let one = self.one(id)?;
                let edit = edit(request.into_body()).await?;
                Ok(json(&json!({ "id": self.replay(&one, edit)? })))
            }
            _ => Err((StatusCode::NOT_FOUND, "there is nothing here".to_owned())),
        }
    }

    /// What every list says of the whole.
    fn state(&self) -> Value {
        json!({
            "version": self.ring.version(),
            "lost": self.ring.lost(),
            "used_bytes": self.ring.used(),
        })
    }

    async fn news(&self, query: &str) -> Result<Value, (StatusCode, String)> {
        let wrong = || (StatusCode::BAD_REQUEST, "write it like ?after=1".to_owned());
        let seen = query.strip_prefix("after=").and_then(|seen| seen.parse().ok()).ok_or_else(wrong)?;
        // Without any, the asker asks again.
        let _ = timeout(WAIT, self.ring.newer(seen)).await;
        Ok(self.state())
    }

    fn found(&self, query: &str) -> Result<Vec<Arc<Exchange>>, (StatusCode, String)> {
        let filter = Filter::parse(query).map_err(|words| (StatusCode::BAD_REQUEST, words))?;
        let mut found = self.ring.all();
        found.retain(|exchange| filter.takes(exchange, &self.ring.secrets));
        found.truncate(filter.limit);
        Ok(found)
    }

    fn one(&self, id: &str) -> Result<Arc<Exchange>, (StatusCode, String)> {
        let found = id.parse().ok().and_then(|id| self.ring.one(id));
        found.ok_or_else(|| (StatusCode::NOT_FOUND, format!("no request {id} is kept (any more)")))
    }

    fn replay(&self, exchange: &Exchange, edit: Edit) -> Result<u64, (StatusCode, String)> {
        let gone = || (StatusCode::NOT_FOUND, "its endpoint is served no more".to_owned());
        let service = self.services.get(&exchange.endpoint).cloned().ok_or_else(gone)?;
        // Where tunnels begin, so that it finds their connections.
        self.replays.begin(&self.ring, service, (exchange, edit), self.threads.first())
    }
}

async fn edit(body: Incoming) -> Result<Edit, (StatusCode, String)> {
    let wrong = |words: String| (StatusCode::BAD_REQUEST, words);
    let body = timeout(EDIT_TIME, Limited::new(body, MAX_EDIT).collect()).await;
    let body = body.map_err(|_| wrong("it took too long".into()))?;
    let body = body.map_err(|e| wrong(e.to_string()))?.to_bytes();
    if body.is_empty() {
        return Ok(Edit::default());
    }
    serde_json::from_slice(&body).map_err(|e| wrong(e.to_string()))
}

/// A body alone. A browser opens what is packed; nothing of it is ever shown or run as what it says it is.
fn body(exchange: &Exchange, request: bool, accepted: &str) -> Response<Full<Bytes>> {
    let answered = exchange.answered.get().map(|answered| &answered.fields);
    let (fields, recording): (_, &Recording) = match request {
        true => (Some(&exchange.asked.fields), &exchange.up),
        false => (answered, &exchange.down),
    };
    let kept = recording.kept.lock().clone();
    let mut response = typed(kept, "application/octet-stream");
    let coding = fields.and_then(|fields| shown::text(fields, &header::CONTENT_ENCODING));
    let known =
        coding.as_deref().and_then(|coding| CODINGS.into_iter().find(|known| known == &coding.trim()));
    if let Some(coding) = known
        && accepted.split(',').any(|one| one.split(';').next().unwrap_or_default().trim() == coding)
    {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    let name = HeaderValue::from_static("attachment; filename=body");
    response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    response
}

fn json(value: &Value) -> Response<Full<Bytes>> {
    typed(format!("{value}\n"), "application/json")
}

fn typed(body: impl Into<Bytes>, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
