//! Why an agent or a forwarder cannot run, and whose fault it is.

use std::time::Duration;

use piko_bootstrap::config::Invalid;
use piko_bootstrap::tls::TlsError;
use piko_tunnel::SessionError;
use piko_tunnel::control::NOT_PERMITTED;
use piko_tunnel::dial::DialError;

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration has no listener, so there is nothing to serve.
    #[error(
        "no listeners configured; give --endpoints my-endpoint/localhost:4000, or `listeners` in the file"
    )]
    NoListeners,
    /// The configuration has no port, so there is nothing to forward.
    #[error("no ports configured; give `ports` in the file, or use `piko forward tcp ADDR ENDPOINT`")]
    NoPorts,
    /// The configuration makes no sense.
    #[error("{}: {}", .0.key, .0.message)]
    Config(Invalid),
    /// The service cannot be addressed.
    #[error("{0} is no service")]
    Service(String),
    /// The token file cannot be read.
    #[error("connect.token_file: {0}")]
    TokenFile(#[source] std::io::Error),
    /// TLS to the cluster cannot be set up.
    #[error("connect.tls: {0}")]
    Tls(#[from] TlsError),
    /// TLS to a service cannot be set up.
    #[error("tls of the listener on {endpoint}: {source}")]
    ServiceTls {
        /// The listener's endpoint.
        endpoint: String,
        /// The file and what is wrong with it.
        source: TlsError,
    },
    /// A port of ours cannot be bound.
    #[error("{key}: cannot listen on {addr}: {source}")]
    Bind {
        /// The key of the address in the configuration.
        key: String,
        /// The address as it was given there.
        addr: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The system gives no thread.
    #[error("no thread for traffic: {0}")]
    Threads(#[source] std::io::Error),
    /// No node could be reached, or none took the agent.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The tunnel could not be set up, or ended by itself.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The node refused a listener.
    #[error("listener refused: {message} ({code})")]
    Refused {
        /// The node's stable code.
        code: String,
        /// The node's words for it.
        message: String,
    },
    /// The first connect took too long.
    #[error("not connected within {within:?}: {last}")]
    ConnectTimeout {
        /// The configured `connect.timeout`.
        within: Duration,
        /// What the last try failed with.
        last: String,
    },
}

impl AgentError {
    /// True if another try with the same configuration cannot succeed.
    pub fn is_config(&self) -> bool {
        match self {
            AgentError::NoListeners
            | AgentError::NoPorts
            | AgentError::Config(_)
            | AgentError::Service(_)
            | AgentError::TokenFile(_)
            | AgentError::Bind { .. }
            | AgentError::Tls(_)
            | AgentError::ServiceTls { .. } => true,
            AgentError::Threads(_)
            | AgentError::Dial(_)
            | AgentError::Session(_)
            | AgentError::Refused { .. }
            | AgentError::ConnectTimeout { .. } => false,
        }
    }

    /// Does the cluster refuse what was asked, the token or the right to a listener?
    pub fn is_not_permitted(&self) -> bool {
        match self {
            AgentError::Dial(DialError::Refused { status, .. }) => matches!(status.as_u16(), 401 | 403),
            AgentError::Refused { code, .. } => code == NOT_PERMITTED,
            _ => false,
        }
    }

    /// Was no node to be reached in time?
    pub fn is_unreachable(&self) -> bool {
        matches!(self, AgentError::ConnectTimeout { .. })
    }

    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            AgentError::Dial(e) => e.is_retryable(),
            AgentError::Session(_) => true,
            _ => false,
        }
    }
}
