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
use http_body_util::Either;
use hyper::body::Incoming;
use piko_tunnel::io::BoxIo;

use crate::ask::Ask;
use crate::connect::{Connected, Connector};
use crate::failure::{Failure, NoAnswer};
use crate::http2::{self, Busy, Multiplexed, Received};
use crate::limits::{IDLE_MARGIN, LOGGED_IN_IDLE};
use crate::link::{Body, Broken, Link, empty};
use crate::seats::{Hold, Seats};
use crate::shelf::Shelves;
use crate::threads;

/// The connections to one service.
pub(crate) struct Pool {
    scheme: Scheme,
    authority: Authority,
    connector: Connector,
    /// How long a connection stays idle, and how many do.
    idle_for: Option<Duration>,
    max_idle: usize,
    idle: Shelves<Box<Link>>,
    seats: Seats<Link>,
    /// The service has sent more header fields in one response than is usual.
    many_fields: AtomicBool,
    /// To a service that speaks HTTP/2, by thread: the connection that carries all its requests.
    multiplexed: Box<[http2::Slot]>,
}

/// The connection that an answer's body comes on.
pub(crate) enum Carrier {
    Http1(Box<Link>),
    Http2(Busy),
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

/// What arrives of an answer's body.
pub(crate) type Arriving = Either<Incoming, Received>;

/// An answer of the service, its body still arriving.
pub(crate) type Answered = (Response<Arriving>, Carrier);

impl Pool {
    /// `threads`: as many as its requests come from.
    pub(crate) fn new(
        (scheme, authority): (Scheme, Authority),
        connector: Connector,
        (idle_for, max_idle): (Option<Duration>, usize),
        threads: usize,
    ) -> Pool {
        Pool {
            scheme,
            authority,
            connector,
            idle_for,
            max_idle,
            idle: Shelves::new(threads, max_idle),
            seats: Seats::default(),
            many_fields: AtomicBool::new(false),
            multiplexed: (0..threads.max(1)).map(|_| http2::Slot::default()).collect(),
        }
    }

    /// Asks the service. What is rare, or dials, is boxed: a future is moved some times before it runs, and this one
    /// would have the size of the largest way.
    pub(crate) async fn ask(&self, ask: Ask, body: Body) -> Result<Answered, NoAnswer> {
        let login = ask.connection_auth && !self.connector.prior_knowledge;
        if let Some(client) = &ask.client
            && let Some((hold, link)) = self.seats.take(client, login).await
        {
            return Box::pin(self.on_held_link(hold, link, ask, body)).await;
        }
        if ask.upgrade.is_some() || login {
            let request = ask.http1(&self.authority, body);
            let (response, mut carrier) = Box::pin(self.on_new_link(request, None)).await?;
            carrier.close_after();
            return Ok((response, carrier));
        }
        if let Some(connection) = self.slot().live() {
            return Box::pin(self.multiplexed(connection, ask, body)).await;
        }
        match self.idle.take() {
            Some(link) => self.on_idle_link(link, ask, body).await,
            None => Box::pin(self.on_no_link(ask, body)).await,
        }
    }

    async fn on_no_link(&self, ask: Ask, body: Body) -> Result<Answered, NoAnswer> {
        let Connected { io, http2 } = self.connector.connect(false).await?;
        if http2 {
            let connection = self.slot().start(io).await?;
            return self.multiplexed(connection, ask, body).await;
        }
        let spare = ask.repeatable().then(|| ask.clone());
        self.on_first_link(io, ask.http1(&self.authority, body), spare).await
    }

    async fn on_idle_link(&self, mut link: Box<Link>, ask: Ask, body: Body) -> Result<Answered, NoAnswer> {
        let spare = ask.repeatable().then(|| ask.clone());
        let mut request = ask.http1(&self.authority, body);
        loop {
            match (self.exchange(link, request).await, &spare) {
                (Ok(answered), _) => return Ok(http1(answered)),
                (Err(Broken::Unsent(unsent)), _) => request = *unsent,
                (Err(Broken::Silent | Broken::TooManyFields), Some(spare)) => {
                    return Box::pin(self.on_new_link(self.again(spare), Some(spare.clone()))).await;
                }
                (Err(broken), _) => return Err(broken.into()),
            }
            link = match self.idle.take() {
                Some(link) => link,
                None => return Box::pin(self.on_new_link(request, spare)).await,
            };
        }
    }

    /// On the connection that serves this client alone: the one it has, or a new one.
    async fn on_held_link(
        &self,
        hold: Hold<Link>,
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
            // Those that are idle were made for fewer.
            self.idle.clear();
        }
        answered
    }

    /// A request without a body, to be sent a second time.
    fn again(&self, spare: &Ask) -> Request<Body> {
        spare.clone().http1(&self.authority, empty())
    }

    /// On the shared connection; once more on a new one, if that has ended and nothing was sent.
    async fn multiplexed(&self, connection: Multiplexed, ask: Ask, body: Body) -> Result<Answered, NoAnswer> {
        let spare = ask.repeatable().then(|| ask.clone());
        let write = |ask: Ask, body| ask.http2(&self.scheme, &self.authority, body);
        let again = match (connection.exchange(write(ask, body)).await, spare) {
            (Ok(answered), _) => return Ok(multiplexed(answered)),
            (Err(Broken::Unsent(unsent)), _) => *unsent,
            (Err(Broken::Silent), Some(spare)) => write(spare, empty()),
            (Err(broken), _) => return Err(broken.into()),
        };
        match self.connector.connect(false).await? {
            Connected { io, http2: true } => {
                Ok(multiplexed(self.slot().start(io).await?.exchange(again).await?))
            }
            // The service speaks HTTP/1.1 only, from one connection to the next.
            Connected { http2: false, .. } => Err(Failure::Closed.into()),
        }
    }

    /// Asks for a path on a connection of its own, and for no more than the status of the answer.
    pub(crate) async fn probe(&self, path: PathAndQuery, host: &str) -> Result<StatusCode, String> {
        let words = |failure: Failure| failure.row().words.to_owned();
        let link = self.open(self.connector.connect(true).await.map_err(words)?.io).await.map_err(words)?;
        let mut request = Request::new(empty());
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

    /// Connects, TLS included, and asks nothing.
    pub(crate) async fn reach(&self) -> Result<(), String> {
        self.connector.connect(false).await.map(drop).map_err(|failure| failure.row().words.to_owned())
    }

    /// Takes a connection back, if it may serve another request.
    pub(crate) fn put(&self, mut link: Box<Link>) {
        // At most half: a service may announce a second or less.
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
        // It was opened before the service was known to send so many fields.
        let too_small = self.many_fields.load(Relaxed) && !link.many_fields;
        if !link.is_idle() || too_small || keep.is_some_and(|keep| keep.is_zero()) {
            return;
        }
        self.idle.put(link, keep);
    }

    /// The calling thread's connection to a service that speaks HTTP/2.
    fn slot(&self) -> &http2::Slot {
        threads::own(&self.multiplexed)
    }

    /// Closes idle connections when their time has come. Never ends.
    pub(crate) async fn tidy(&self) {
        tokio::join!(self.idle.tidy(), self.seats.tidy());
    }
}

fn multiplexed((response, busy): (Response<Received>, Busy)) -> Answered {
    (response.map(Either::Right), Carrier::Http2(busy))
}

fn http1((response, link): (Response<Incoming>, Box<Link>)) -> Answered {
    (response.map(Either::Left), Carrier::Http1(link))
}
