//! Do both ends of a peer link know the cluster secret? A challenge each way, no secret on the wire.
//!
//! ```text
//! dialler  → magic (16) nonce (32)
//! acceptor → magic (16) nonce (32)
//! dialler  → HMAC-SHA-256(key, "dial" | dialler's nonce | acceptor's nonce)
//! acceptor → HMAC-SHA-256(key, "accept" | dialler's nonce | acceptor's nonce)
//! ```
//! Without a secret the key is a constant: then it only keeps strangers' protocols out.

use std::time::Duration;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

/// Names the protocol and its version.
const MAGIC: &[u8; 16] = b"PIKO-PEER-LINK/1";
const NONCE: usize = 32;
const PROOF: usize = 32;
/// The whole exchange is four small messages.
const WITHIN: Duration = Duration::from_secs(5);

/// The cluster secret, as a key for peer links. Cannot be printed.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

/// Why a peer link was not set up.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The bytes are no peer link's.
    #[error("the other end does not speak the peer protocol")]
    NotPeer,
    /// The secrets differ.
    #[error("the other end does not know the cluster secret")]
    WrongSecret,
    /// Too slow.
    #[error("no answer within {WITHIN:?}")]
    Late,
    /// The connection failed.
    #[error("connection failed: {0}")]
    Io(#[from] std::io::Error),
}

impl Secret {
    /// `None`: peers are not authenticated.
    pub fn new(secret: Option<&[u8]>) -> Self {
        let key = secret.unwrap_or(b"no cluster secret");
        Secret(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    fn proof(&self, role: &[u8], dialler: &[u8; NONCE], acceptor: &[u8; NONCE]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(role);
        mac.update(dialler);
        mac.update(acceptor);
        mac
    }
}

/// The end that dialled.
pub(super) async fn dial<S>(io: &mut S, secret: &Secret) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = async {
        let ours = hello(io).await?;
        let theirs = read_hello(io).await?;
        let proof = secret.proof(b"dial", &ours, &theirs).finalize().into_bytes();
        io.write_all(&proof).await?;
        io.flush().await?;
        check(io, secret.proof(b"accept", &ours, &theirs)).await
    };
    timeout(WITHIN, exchange).await.map_err(|_| HandshakeError::Late)?
}

/// The end that was dialled.
pub(super) async fn accept<S>(io: &mut S, secret: &Secret) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = async {
        let theirs = read_hello(io).await?;
        let ours = hello(io).await?;
        check(io, secret.proof(b"dial", &theirs, &ours)).await?;
        let proof = secret.proof(b"accept", &theirs, &ours).finalize().into_bytes();
        io.write_all(&proof).await?;
        Ok(io.flush().await?)
    };
    timeout(WITHIN, exchange).await.map_err(|_| HandshakeError::Late)?
}

async fn hello<S: AsyncWrite + Unpin>(io: &mut S) -> Result<[u8; NONCE], HandshakeError> {
    let nonce = rand::random::<[u8; NONCE]>();
    io.write_all(&[&MAGIC[..], &nonce].concat()).await?;
    io.flush().await?;
    Ok(nonce)
}

async fn read_hello<S: AsyncRead + Unpin>(io: &mut S) -> Result<[u8; NONCE], HandshakeError> {
    let mut magic = [0; MAGIC.len()];
    io.read_exact(&mut magic).await?;
    if magic != *MAGIC {
        return Err(HandshakeError::NotPeer);
    }
    let mut nonce = [0; NONCE];
    io.read_exact(&mut nonce).await?;
    Ok(nonce)
}

async fn check<S: AsyncRead + Unpin>(io: &mut S, expected: Hmac<Sha256>) -> Result<(), HandshakeError> {
    let mut proof = [0; PROOF];
    match io.read_exact(&mut proof).await {
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

    async fn meet(a: &Secret, b: &Secret) -> (Result<(), HandshakeError>, Result<(), HandshakeError>) {
        let (mut near, mut far) = tokio::io::duplex(256);
        tokio::join!(async move { dial(&mut near, a).await }, async move { accept(&mut far, b).await })
    }

    #[tokio::test]
    async fn equal_secrets_meet_and_others_do_not() {
        let secret = Secret::new(Some(b"one"));
        let (dialler, acceptor) = meet(&secret, &secret).await;
        assert!(dialler.is_ok() && acceptor.is_ok());
        for other in [Secret::new(Some(b"two")), Secret::new(None)] {
            let (dialler, acceptor) = meet(&secret, &other).await;
            assert!(matches!(dialler, Err(HandshakeError::WrongSecret)), "{dialler:?}");
            assert!(matches!(acceptor, Err(HandshakeError::WrongSecret)), "{acceptor:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_are_told_apart_and_silence_has_a_limit() {
        let secret = Secret::new(None);
        let mut stranger = &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..];
        let mut io = tokio::io::join(&mut stranger, tokio::io::sink());
        assert!(matches!(accept(&mut io, &secret).await, Err(HandshakeError::NotPeer)));
        let (mut silent, _other) = tokio::io::duplex(64);
        assert!(matches!(accept(&mut silent, &secret).await, Err(HandshakeError::Late)));
    }
}
