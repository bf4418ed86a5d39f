//! Before a request goes on: its head is parsed, its client admitted, its endpoint found.

use http::{HeaderName, Version, header};
use piko_plugin_host::Taken;
use piko_tunnel::headers;
use pingora_error::Result;
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::gateway::Gateway;
use super::incoming::{self, Incoming};
use super::plugins::{self, Decision, Known};
use super::request::Request;
use super::{request_id, trace};
use crate::auth::Admitted;
use crate::config::UnderscoreHeaders;
use crate::error::Failure;
use crate::route::{Asked, EndpointKey};

impl Gateway {
    /// Parses the head and leaves in it what is for the service and the plugins.
    pub(super) fn parse(&self, session: &mut Session, ctx: &mut Request) -> Result<(), Failure> {
        let head = session.req_header_mut();
        settle_connection(head).map_err(|_| Failure::BadRequest)?;
        // This node answers it, see `Client::go_on`.
        head.remove_header(&header::EXPECT);
        request_id::settle(head, self.request_ids).map_err(|_| Failure::BadRequest)?;
        self.trace(session, ctx).map_err(|_| Failure::BadRequest)?;
        let head = session.req_header_mut();
        self.settle_underscores(head)?;
        let http2 = head.version == Version::HTTP_2;
        let bodiless = http2 && session.downstream_session.is_body_empty();
        let head = session.req_header();
        ctx.incoming = Incoming::parse(head, bodiless)?;
        ctx.request_size = ctx.incoming.header_bytes + head.uri.path().len();
        if ctx.incoming.header_bytes > self.max_header_bytes {
            return Err(Failure::HeadersTooLarge);
        }
        Ok(())
    }

    /// CGI, WSGI and PHP know `X_Tenant` and `X-Tenant` by one name: a client could speak as a plugin or as
    /// this node by the former.
    fn settle_underscores(&self, head: &mut RequestHeader) -> Result<(), Failure> {
        let underscored = |name: &&HeaderName| name.as_str().contains('_');
        if self.underscore_headers == UnderscoreHeaders::Pass
            || !head.headers.keys().any(|name| underscored(&name))
        {
            return Ok(());
        }
        if self.underscore_headers == UnderscoreHeaders::Reject {
            return Err(Failure::UnderscoreHeader);
        }
        let names: Vec<HeaderName> = head.headers.keys().filter(underscored).cloned().collect();
        for name in names {
            head.remove_header(&name);
        }
        Ok(())
    }

    /// Who asks, and as whose. The token that was used up here is gone then: it would open this port to any
    /// plugin or service that reads it.
    pub(super) async fn admit(&self, session: &mut Session) -> Result<Admitted, Failure> {
        let head = session.req_header_mut();
        let authority = incoming::authority(head).ok().flatten();
        let domain = authority.and_then(|authority| self.domains.tenant(authority));
        let admitted = self.auth.admit(&head.headers, domain).await.map_err(Failure::Denied)?;
        if let Some(spent) = &admitted.spent {
            head.remove_header(spent);
        }
        Ok(admitted)
    }

    /// Which endpoint, by the client's word and the plugins'. True when a plugin has answered.
    pub(super) async fn find_endpoint(
        &self,
        session: &mut Session,
        ctx: &mut Request,
        admitted: &Admitted,
    ) -> Result<bool> {
        let head = session.req_header();
        let authority = incoming::authority(head).map_err(Failure::into_error)?;
        let asked = ctx.incoming.asked(head, &self.domains);
        let found = asked.and_then(|asked| self.router.resolve(&admitted.tenant, &asked));
        let destination = match self.plugins.current() {
            None => found.map_err(Failure::into_error)?,
            Some(chain) => {
                let authority = authority.map(str::to_owned);
                let known = Known { found, authority: authority.as_deref(), admitted };
                let decision = plugins::on_request(&chain, session, known).await;
                trace::plugins(ctx);
                match decision? {
                    Decision::Go(destination, taken) => {
                        ctx.taken = Some(taken).filter(Taken::wants_response);
                        destination
                    }
                    Decision::Elsewhere(EndpointKey { tenant, endpoint }, taken) => {
                        ctx.taken = Some(taken).filter(Taken::wants_response);
                        let resolved = self.router.resolve(&tenant, &Asked::Exact(endpoint));
                        resolved.map_err(Failure::into_error)?
                    }
                    Decision::Answer(endpoint, head, body) => {
                        ctx.endpoint = endpoint;
                        self.reply(session, ctx, *head, body).await?;
                        return Ok(true);
                    }
                }
            }
        };
        // After the last plugin: what is permitted and what is routed are one value.
        if !destination.all_permitted(|endpoint| admitted.permits(endpoint)) {
            return Err(Failure::NotPermitted.into_error());
        }
        ctx.listener = Some(destination.listener());
        ctx.endpoint = Some(destination.endpoint);
        Ok(false)
    }
}

/// What `Connection` names goes before anybody sets a header of the same name.
fn settle_connection(request: &mut RequestHeader) -> Result<()> {
    let Some((names, connection)) = headers::settle_connection(&request.headers) else { return Ok(()) };
    for name in names {
        request.remove_header(&name);
    }
    match connection {
        Some(value) => request.insert_header(header::CONNECTION, value),
        None => {
            request.remove_header(&header::CONNECTION);
            Ok(())
        }
    }
}
