//! What a line of an access log can say, and what it says where nobody has chosen.

/// One thing that a line can say of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "docs/observability.md has a row for each")]
pub enum Field {
    Method,
    Host,
    Path,
    Status,
    Endpoint,
    Upstream,
    Client,
    RequestId,
    TraceId,
    Error,
    GoneS,
    Tries,
    BytesIn,
    BytesOut,
    DurationMs,
    QueueMs,
    FirstByteMs,
    Scheme,
    Protocol,
    UserAgent,
}

/// Whose log it is: a node knows other things of a request than an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A node.
    Node,
    /// An agent.
    Agent,
}

impl Field {
    /// As it stands in a line and in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Field::Method => "method",
            Field::Host => "host",
            Field::Path => "path",
            Field::Status => "status",
            Field::Endpoint => "endpoint",
            Field::Upstream => "upstream",
            Field::Client => "client",
            Field::RequestId => "request_id",
            Field::TraceId => "trace_id",
            Field::Error => "error",
            Field::GoneS => "gone_s",
            Field::Tries => "tries",
            Field::BytesIn => "bytes_in",
            Field::BytesOut => "bytes_out",
            Field::DurationMs => "duration_ms",
            Field::QueueMs => "queue_ms",
            Field::FirstByteMs => "first_byte_ms",
            Field::Scheme => "scheme",
            Field::Protocol => "protocol",
            Field::UserAgent => "user_agent",
        }
    }

    /// Its place in a set of fields.
    pub(super) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl Side {
    /// Every field of this side's lines.
    pub const fn fields(self) -> &'static [Field] {
        use Field::*;
        match self {
            Side::Node => &[
                Method,
                Host,
                Path,
                Status,
                Endpoint,
                Upstream,
                Client,
                RequestId,
                TraceId,
                Error,
                GoneS,
                Tries,
                BytesIn,
                BytesOut,
                DurationMs,
                QueueMs,
                FirstByteMs,
                Scheme,
                Protocol,
                UserAgent,
            ],
            Side::Agent => &[
                Endpoint, Method, Path, RequestId, TraceId, Status, Error, BytesIn, BytesOut, DurationMs,
                Host, UserAgent,
            ],
        }
    }

    /// Is it in a line where nobody has chosen?
    const fn is_usual(self, field: Field) -> bool {
        use Field::*;
        match self {
            Side::Node => !matches!(field, QueueMs | FirstByteMs | Scheme | Protocol | UserAgent),
            Side::Agent => !matches!(field, Host | UserAgent),
        }
    }

    /// The fields of these names as a set; the usual ones where there are none. The error names the known ones.
    pub(super) fn mask(self, names: &[String]) -> Result<u32, String> {
        let all = self.fields().iter();
        if names.is_empty() {
            return Ok(all.filter(|field| self.is_usual(**field)).fold(0, |mask, field| mask | field.bit()));
        }
        names.iter().try_fold(0, |mask, name| match all.clone().find(|field| field.name() == name) {
            Some(field) => Ok(mask | field.bit()),
            None => {
                let known = all.clone().map(|field| field.name()).collect::<Vec<_>>().join(", ");
                Err(format!("there is no field {name:?}; use {known}"))
            }
        })
    }
}
