//! The connections to one service: idle ones, new ones, and which request goes on which.
//!
//! | What happened | Then |
//! |---|---|
//! | an idle connection was closed before anything of the request was written | the next connection, any method |
//! | an idle connection closed before a byte of an answer | a new connection, if the request is repeatable |
//! | an answer has more header fields than usual | a new connection with room for them, if the request is repeatable |
//! | a new connection fails, or an answer has begun | the failure is answered |
//!
//! A request that logs in its connection, and all that follow it on its client's, go on one that serves nobody else
//! (`seats.rs`). Where the node does not tell clients' connections apart, it has a connection to itself once.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use parking_lot::Mutex;
use piko_tunnel::io::BoxIo;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::ask::Ask;
use crate::connect::{Connected, Connector};
use crate::failure::{Failure, NoAnswer};
use crate::http2::{self, Multiplexed};
use crate::limits::{IDLE_MARGIN, LOGGED_IN_IDLE};
use crate::link::{Broken, Link};
use crate::seats::{Hold, Seats};
use crate::service::Body;

/// The connections to one service.
pub(crate) struct Pool {
    scheme: Scheme,
    authority: Authority,
    connector: Connector,
    /// How long a connection stays idle, and how many do.
    idle_for: Option<Duration>,
    max_idle: usize,
    idle: Mutex<IdleList>,
    seats: Seats,
    /// The first idle connection after none wakes [`Pool::tidy`].
    filled: Notify,
    /// The service has sent more header fields in one response than is usual.
    many_fields: AtomicBool,
    /// The connection that carries all requests to a service which speaks HTTP/2.
    multiplexed: http2::Slot,
}

#[derive(Default)]
struct IdleList {
    /// The one used last is the last: it is taken first, so that the others may age and go.
    links: Vec<Idle>,
    /// [`Pool::tidy`] has a time to wake at.
    watched: bool,
}

struct Idle {
    link: Box<Link>,
    until: Option<Instant>,
}

/// What the answer's body comes on.
pub(crate) enum Carrier {
    Http1(Box<Link>),
    /// Held, as the connection lives no longer than its users.
    Http2 {
        _connection: Multiplexed,
    },
}

impl Carrier {
    /// Not for another request. Requests that share a connection do not have it to themselves anyway.
    pub(crate) fn close_after(&mut self) {
        if let Carrier::Http1(link) = self {
            link.single_use = true;
        }
    }

    /// Does it serve one client alone?
    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Carrier::Http1(link) if link.hold.is_some())
    }
}

/// An answer of the service, its body still arriving.
pub(crate) type Answered = (Response<Incoming>, Carrier);

impl Pool {
    pub(crate) fn new(
        (scheme, authority): (Scheme, Authority),
        connector: Connector,
        idle_for: Option<Duration>,
        max_idle: usize,
    ) -> Pool {
        Pool {
            scheme,
            authority,
            connector,
            idle_for,
            max_idle,
            idle: Mutex::default(),
            seats: Seats::default(),
            filled: Notify::new(),
            many_fields: AtomicBool::new(false),
            multiplexed: http2::Slot::default(),
        }
    }

    /// Asks the service.
    pub(crate) async fn ask(&self, ask: Ask, body: Body) -> Result<Answered, NoAnswer> {
        let login = ask.connection_auth && !self.connector.prior_knowledge;
        if let Some(client) = &ask.client
            && let Some((hold, link)) = self.seats.take(client, login).await
        {
            return self.on_held_link(hold, link, ask, body).await;
        }
        if ask.upgrade.is_some() || login {
            let (response, mut carrier) = self.on_new_link(ask.http1(&self.authority, body), None).await?;
            carrier.close_after();
            return Ok((response, carrier));
        }
        if let Some(connection) = self.multiplexed.live() {
            return self.multiplexed(connection, ask, body).await;
        }
        let Some(link) = self.take() else {
            let Connected { io, http2 } = self.connector.connect(false).await?;
            if http2 {
                let connection = self.multiplexed.start(io).await?;
                return self.multiplexed(connection, ask, body).await;
            }
            let spare = ask.repeatable().then(|| ask.clone());
            return self.on_first_link(io, ask.http1(&self.authority, body), spare).await;
        };
        self.on_idle_link(link, ask, body).await
    }

    async fn on_idle_link(&self, mut link: Box<Link>, ask: Ask, body: Body) -> Result<Answered, NoAnswer> {
        let spare = ask.repeatable().then(|| ask.clone());
        let mut request = ask.http1(&self.authority, body);
        loop {
            match (self.exchange(link, request).await, &spare) {
                (Ok(answered), _) => return Ok(http1(answered)),
                (Err(Broken::Unsent(unsent)), _) => request = *unsent,
                (Err(Broken::Silent | Broken::TooManyFields), Some(spare)) => {
                    return self.on_new_link(self.again(spare), Some(spare.clone())).await;
                }
                (Err(broken), _) => return Err(broken.into()),
            }
            link = match self.take() {
                Some(link) => link,
                None => return self.on_new_link(request, spare).await,
            };
        }
    }

    /// On the connection that serves this client alone: the one it has, or a new one.
    async fn on_held_link(
        &self,
        hold: Hold,
        link: Option<Box<Link>>,
        ask: Ask,
        body: Body,
    ) -> Result<Answered, NoAnswer> {
        let upgrade = ask.upgrade.is_some();
        let spare = ask.repeatable().then(|| ask.clone());
        let request = ask.http1(&self.authority, body);
        let answered = match link {
            None => Err(request),
            Some(link) => match (self.exchange(link, request).await, spare) {
                (Ok(answered), _) => Ok(answered),
                (Err(Broken::Unsent(unsent)), _) => Err(*unsent),
                (Err(Broken::Silent), Some(spare)) => Err(self.again(&spare)),
                (Err(broken), _) => return Err(broken.into()),
            },
        };
        let (response, mut link) = match answered {
            Ok(answered) => answered,
            // A new one is not logged in: the service asks for that.
            Err(again) => {
                let link = self.open(self.connector.connect(true).await?.io).await?;
                self.exchange(link, again).await?
            }
        };
        link.hold = Some(hold);
        link.single_use = upgrade;
        Ok(http1((response, link)))
    }

    /// `spare`: the same once more, if it may be sent twice.
    async fn on_new_link(&self, request: Request<Body>, spare: Option<Ask>) -> Result<Answered, NoAnswer> {
        let Connected { io, .. } = self.connector.connect(true).await?;
        self.on_first_link(io, request, spare).await
    }

    async fn on_first_link(
        &self,
        io: BoxIo,
        request: Request<Body>,
        spare: Option<Ask>,
    ) -> Result<Answered, NoAnswer> {
        match (self.exchange(self.open(io).await?, request).await, spare) {
            (Err(Broken::TooManyFields), Some(spare)) => {
                let link = self.open(self.connector.connect(true).await?.io).await?;
                Ok(http1(link.exchange(self.again(&spare)).await?))
            }
            (answered, _) => Ok(http1(answered?)),
        }
    }

    async fn open(&self, io: BoxIo) -> Result<Box<Link>, Failure> {
        Link::open(io, self.many_fields.load(Relaxed)).await
    }

    /// Sends a request and waits for the head of its answer. A service that sends more fields than usual gets
    /// connections for them from then on.
    async fn exchange(
        &self,
        link: Box<Link>,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Box<Link>), Broken> {
        let answered = link.exchange(request).await;
        if matches!(answered, Err(Broken::TooManyFields)) {
            self.many_fields.store(true, Relaxed);
            // Those that are idle were made for fewer. They are closed after the lock is given back: each is a system
            // call.
            let old = std::mem::take(&mut self.idle.lock().links);
            drop(old);
        }
        answered
    }

    /// A request without a body, to be sent a second time.
    fn again(&self, spare: &Ask) -> Request<Body> {
        spare.clone().http1(&self.authority, Either::Right(Empty::new()))
    }

    /// On the shared connection; once more on a new one, if that has ended and nothing was sent.
    async fn multiplexed(&self, connection: Multiplexed, ask: Ask, body: Body) -> Result<Answered, NoAnswer> {
        let spare = ask.repeatable().then(|| ask.clone());
        let write = |ask: Ask, body| ask.http2(&self.scheme, &self.authority, body);
        let again = match (connection.exchange(write(ask, body)).await, spare) {
            (Ok(answered), _) => return Ok(answered),
            (Err(Broken::Unsent(unsent)), _) => *unsent,
            (Err(Broken::Silent), Some(spare)) => write(spare, Either::Right(Empty::new())),
            (Err(broken), _) => return Err(broken.into()),
        };
        match self.connector.connect(false).await? {
            Connected { io, http2: true } => Ok(self.multiplexed.start(io).await?.exchange(again).await?),
            // The service speaks HTTP/1.1 only, from one connection to the next.
            Connected { http2: false, .. } => Err(Failure::Closed.into()),
        }
    }

    /// Asks for a path on a connection of its own, and for no more than the status of the answer.
    pub(crate) async fn probe(&self, path: PathAndQuery, host: &str) -> Result<StatusCode, String> {
        let words = |failure: Failure| failure.row().words.to_owned();
        let link = self.open(self.connector.connect(true).await.map_err(words)?.io).await.map_err(words)?;
        let mut request = Request::new(Either::Right(Empty::new()));
        *request.uri_mut() = path.into();
        let host = HeaderValue::try_from(host).map_err(|e| e.to_string())?;
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("piko-health"));
        match link.exchange(request).await {
            Ok((response, _)) => Ok(response.status()),
            Err(broken) => Err(match broken.into() {
                NoAnswer::Failed(failure) => words(failure),
                NoAnswer::ClientGone => "no answer".to_owned(),
            }),
        }
    }

    /// Connects, and no more.
    pub(crate) async fn reach(&self) -> Result<(), String> {
        self.connector.connect(false).await.map(drop).map_err(|failure| failure.row().words.to_owned())
    }

    fn take(&self) -> Option<Box<Link>> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        loop {
            let Idle { link, until } = idle.links.pop()?;
            if until.is_none_or(|until| now < until) {
                return Some(link);
            }
        }
    }

    /// Takes a connection back, if it may serve another request.
    pub(crate) fn put(&self, mut link: Box<Link>) {
        let announced = link.announced.map(|time| time.saturating_sub(IDLE_MARGIN.min(time / 2)));
        if let Some(hold) = link.hold.take() {
            if link.is_idle() {
                let idle_for = announced.map_or(LOGGED_IN_IDLE, |theirs| theirs.min(LOGGED_IN_IDLE));
                self.seats.put(hold, link, idle_for, self.max_idle);
            }
            return;
        }
        let keep = match (self.idle_for, announced) {
            (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
        let too_small = self.many_fields.load(Relaxed) && !link.many_fields;
        if !link.is_idle() || too_small || keep.is_some_and(|keep| keep.is_zero()) {
            return;
        }
        let until = keep.map(|keep| Instant::now() + keep);
        let mut idle = self.idle.lock();
        if idle.links.len() >= self.max_idle {
            return;
        }
        idle.links.push(Idle { link, until });
        if !idle.watched && until.is_some() {
            idle.watched = true;
            self.filled.notify_one();
        }
    }

    /// Closes idle connections when their time has come. Never ends.
    pub(crate) async fn tidy(&self) {
        tokio::join!(self.tidy_idle(), self.seats.tidy());
    }

    async fn tidy_idle(&self) {
        loop {
            match self.close_old() {
                Some(next) => sleep_until(next).await,
                None => self.filled.notified().await,
            }
        }
    }

    /// When to come again: none if no idle connection has a time to go.
    fn close_old(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        let old: Vec<_> =
            idle.links.extract_if(.., |idle| idle.until.is_some_and(|until| until <= now)).collect();
        let next = idle.links.iter().filter_map(|idle| idle.until).min();
        idle.watched = next.is_some();
        drop(idle);
        // Closing is a system call each: not under the lock.
        drop(old);
        next
    }
}

fn http1((response, link): (Response<Incoming>, Box<Link>)) -> Answered {
    (response, Carrier::Http1(link))
}
