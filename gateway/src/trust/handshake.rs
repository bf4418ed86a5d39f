//! Do both ends of a connection between nodes know the cluster secret? A challenge each way, no secret on the wire.
//!
//! ```text
//! dialler  → magic (16) nonce (32)
//! acceptor → magic (16) nonce (32)
//! dialler  → HMAC-SHA-256(key, "dial" | dialler's nonce | acceptor's nonce | binding)
//! acceptor → HMAC-SHA-256(key, "accept" | dialler's nonce | acceptor's nonce | binding)
//! ```
//! The binding is what both ends of one TLS connection can compute and nobody else (its exporter): somebody in the
//! middle has two connections, whose bindings differ, so neither end takes the proof meant for the other. In clear it
//! is zeros. Without a secret the key is a constant: then all this only keeps strangers' protocols out.

use std::time::Duration;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::secret::ClusterKey;
use crate::tls::Binding;

const MAGIC: usize = 16;
const NONCE: usize = 32;
const PROOF: usize = 32;
/// The whole exchange is four small messages.
const WITHIN: Duration = Duration::from_secs(5);

/// The use of a connection. A proof for one use is not accepted for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Requests from node to node.
    Peer,
    /// memberlist's streams and tables.
    Gossip,
}

impl Purpose {
    /// Names the protocol and its version.
    fn magic(self) -> &'static [u8; MAGIC] {
        match self {
            Purpose::Peer => b"PIKO-PEER-LINK/2",
            Purpose::Gossip => b"PIKO-GOSSIP-TCP2",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Purpose::Peer => "prove on peer links",
            Purpose::Gossip => "prove on gossip streams",
        }
    }
}

/// The key that proves that a node is of the cluster. It cannot be printed.
#[derive(Clone)]
pub(crate) struct Secret {
    purpose: Purpose,
    mac: Hmac<Sha256>,
}

/// Why a connection between nodes was not set up.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The bytes are another protocol's, or another version's.
    #[error("the other end does not speak this protocol of piko's nodes")]
    NotPeer,
    /// The other end's proof is wrong, or it took ours for wrong: the secrets differ.
    #[error("the other end does not know the cluster secret")]
    WrongSecret,
    /// Too many others are at the door.
    #[error("too many connections wait to be let in")]
    Crowded,
    /// The exchange, or the TLS before it, took longer than `WITHIN`.
    #[error("no answer within {WITHIN:?}")]
    Late,
    /// The connection, or its TLS, failed.
    #[error("connection failed: {0}")]
    Io(#[from] std::io::Error),
}

impl Secret {
    /// Without a key, the other end is not authenticated.
    pub(crate) fn new(purpose: Purpose, key: Option<&ClusterKey>) -> Self {
        let key = key.map_or([0; 32], |key| key.key(purpose.key(), &[]));
        Secret { purpose, mac: Hmac::new_from_slice(&key).expect("HMAC takes keys of any length") }
    }

    fn proof(
        &self,
        role: &[u8],
        dialler: &[u8; NONCE],
        acceptor: &[u8; NONCE],
        binding: Option<Binding>,
    ) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(role);
        mac.update(dialler);
        mac.update(acceptor);
        mac.update(&binding.unwrap_or_default());
        mac
    }
}

/// Proves this end and checks the other, as the end that dialled.
pub(super) async fn dial<S>(
    io: &mut S,
    secret: &Secret,
    binding: Option<Binding>,
) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = async {
        let ours = hello(io, secret.purpose).await?;
        let theirs = read_hello(io, secret.purpose).await?;
        let proof = secret.proof(b"dial", &ours, &theirs, binding).finalize().into_bytes();
        io.write_all(&proof).await?;
        io.flush().await?;
        check(io, secret.proof(b"accept", &ours, &theirs, binding)).await
    };
    timeout(WITHIN, exchange).await.map_err(|_| HandshakeError::Late)?
}

/// Checks the other end and proves this one, as the end that was dialled.
pub(super) async fn accept<S>(
    io: &mut S,
    secret: &Secret,
    binding: Option<Binding>,
) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = async {
        let theirs = read_hello(io, secret.purpose).await?;
        let ours = hello(io, secret.purpose).await?;
        // Before its own proof, so that a stranger gets nothing to try secrets on.
        check(io, secret.proof(b"dial", &theirs, &ours, binding)).await?;
        let proof = secret.proof(b"accept", &theirs, &ours, binding).finalize().into_bytes();
        io.write_all(&proof).await?;
        Ok(io.flush().await?)
    };
    timeout(WITHIN, exchange).await.map_err(|_| HandshakeError::Late)?
}

async fn hello<S: AsyncWrite + Unpin>(io: &mut S, purpose: Purpose) -> Result<[u8; NONCE], HandshakeError> {
    let nonce = rand::random::<[u8; NONCE]>();
    io.write_all(&[&purpose.magic()[..], &nonce].concat()).await?;
    io.flush().await?;
    Ok(nonce)
}

async fn read_hello<S: AsyncRead + Unpin>(
    io: &mut S,
    purpose: Purpose,
) -> Result<[u8; NONCE], HandshakeError> {
    let mut magic = [0; MAGIC];
    io.read_exact(&mut magic).await?;
    if magic != *purpose.magic() {
        return Err(HandshakeError::NotPeer);
    }
    let mut nonce = [0; NONCE];
    io.read_exact(&mut nonce).await?;
    Ok(nonce)
}

async fn check<S: AsyncRead + Unpin>(io: &mut S, expected: Hmac<Sha256>) -> Result<(), HandshakeError> {
    let mut proof = [0; PROOF];
    match io.read_exact(&mut proof).await {
        // In constant time: how much of a guess was right does not show.
        Ok(_) => expected.verify_slice(&proof).map_err(|_| HandshakeError::WrongSecret),
        // The acceptor hangs up on a wrong proof.
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(HandshakeError::WrongSecret),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    type Ends = (Result<(), HandshakeError>, Result<(), HandshakeError>);

    async fn meet(a: &Secret, b: &Secret, bindings: [Option<Binding>; 2]) -> Ends {
        let (mut near, mut far) = tokio::io::duplex(256);
        let [near_binding, far_binding] = bindings;
        tokio::join!(async move { dial(&mut near, a, near_binding).await }, async move {
            accept(&mut far, b, far_binding).await
        })
    }

    fn secret(text: &str) -> Secret {
        Secret::new(Purpose::Peer, Some(&ClusterKey::derive(text).unwrap()))
    }

    #[tokio::test]
    async fn equal_secrets_meet_and_others_do_not() {
        let same = secret("a secret of the tests");
        for binding in [None, Some([7; 32])] {
            let (dialler, acceptor) = meet(&same, &same, [binding; 2]).await;
            assert!(dialler.is_ok() && acceptor.is_ok());
        }
        for other in [secret("b secret of the tests"), Secret::new(Purpose::Peer, None)] {
            let (dialler, acceptor) = meet(&same, &other, [None; 2]).await;
            assert!(matches!(dialler, Err(HandshakeError::WrongSecret)), "{dialler:?}");
            assert!(matches!(acceptor, Err(HandshakeError::WrongSecret)), "{acceptor:?}");
        }
    }

    #[tokio::test]
    async fn r4_a_proof_is_good_for_its_own_connection_and_purpose_alone() {
        let same = secret("a secret of the tests");
        let (dialler, acceptor) = meet(&same, &same, [Some([1; 32]), Some([2; 32])]).await;
        assert!(matches!(dialler, Err(HandshakeError::WrongSecret)), "{dialler:?}");
        assert!(matches!(acceptor, Err(HandshakeError::WrongSecret)), "{acceptor:?}");
        let key = ClusterKey::derive("a secret of the tests").unwrap();
        let (_, acceptor) = meet(&Secret::new(Purpose::Gossip, Some(&key)), &same, [None; 2]).await;
        assert!(matches!(acceptor, Err(HandshakeError::NotPeer)), "{acceptor:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_are_told_apart_and_silence_has_a_limit() {
        let secret = Secret::new(Purpose::Peer, None);
        let mut stranger = &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..];
        let mut io = tokio::io::join(&mut stranger, tokio::io::sink());
        assert!(matches!(accept(&mut io, &secret, None).await, Err(HandshakeError::NotPeer)));
        let (mut silent, _other) = tokio::io::duplex(64);
        assert!(matches!(accept(&mut silent, &secret, None).await, Err(HandshakeError::Late)));
    }
}
