//! A raw HTTP/1.1 service that believes every framing header, and records each message it reads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What the service read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Read {
    Request {
        connection: usize,
        head: String,
        body: String,
    },
    /// What no client could have meant.
    Nonsense(String),
    /// A connection ended between messages.
    Closed(usize),
}

/// The service. The first segment of a path is the answer wanted: see [`answer`].
pub(super) struct Recorder {
    pub(super) addr: SocketAddr,
    read: Arc<Mutex<Vec<Read>>>,
    _task: JoinSet<()>,
}

impl Recorder {
    pub(super) async fn start() -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let read = Arc::<Mutex<Vec<Read>>>::default();
        let mut task = JoinSet::new();
        let log = read.clone();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let log = log.clone();
                connections.spawn(async move {
                    let last = serve(stream, number, &log).await.err();
                    log.lock().push(last.map_or(Read::Closed(number), |e| Read::Nonsense(e.to_string())));
                });
            }
        });
        Recorder { addr, read, _task: task }
    }

    /// What was read since the last time.
    pub(super) fn read(&self) -> Vec<Read> {
        std::mem::take(&mut self.read.lock())
    }

    /// The requests read since the last time: connection, head, body.
    pub(super) fn requests(&self) -> Vec<(usize, String, String)> {
        let request = |read| match read {
            Read::Request { connection, head, body } => Some((connection, head, body)),
            Read::Nonsense(what) => panic!("the service read {what}"),
            Read::Closed(_) => None,
        };
        self.read().into_iter().filter_map(request).collect()
    }
}

/// One connection. Fails where its bytes are not messages.
async fn serve(stream: TcpStream, connection: usize, log: &Mutex<Vec<Read>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    for served in 0.. {
        let Some(head) = read_head(&mut stream).await? else { return Ok(()) };
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !words.next().is_some_and(|word| word.starts_with("HTTP/1.1\r\n")) || !path.starts_with('/') {
            return Err(std::io::Error::other(format!("a request line {head:?}")));
        }
        let kind = path.split('/').nth(1).unwrap_or_default().to_owned();
        let answer = answer(&kind, method == "HEAD");
        if kind == "early" {
            stream.write_all(&answer).await?;
        }
        let body = read_body(&mut stream, &head).await?;
        log.lock().push(Read::Request { connection, head: head.clone(), body });
        if kind == "second" && served > 0 || kind == "empty" {
            return Ok(());
        }
        if kind != "early" {
            stream.write_all(&answer).await?;
        }
        match kind.as_str() {
            // As a service does whose keep-alive is short: the agent has put the connection back by then.
            "bye" => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Ok(());
            }
            "eof" | "close" | "short" | "garbage" | "tls" => return Ok(()),
            // Bytes now, if it was asked for. The other end has to go: this one does not.
            "switch" | "identity" => {
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await?;
                let sound = kind == "switch" || rest.is_empty();
                return if sound { Ok(()) } else { Err(std::io::Error::other("more after the last answer")) };
            }
            _ => {}
        }
    }
    Ok(())
}

/// None: the connection ended before a message.
async fn read_head(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_until(b'\n', &mut head).await {
            Ok(0) | Err(_) if head.is_empty() => return Ok(None),
            Ok(0) => return Err(std::io::Error::other("half a head")),
            other => other?,
        };
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

async fn read_body(stream: &mut BufReader<TcpStream>, head: &str) -> std::io::Result<String> {
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let values: Vec<_> = lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v).collect();
        values
    };
    let (lengths, codings) = (field("content-length"), field("transfer-encoding"));
    if lengths.len() + codings.len() > 1 {
        return Err(std::io::Error::other(format!("two framings in {head:?}")));
    }
    let mut body = Vec::new();
    if let Some(length) = lengths.first() {
        body = vec![0; length.parse().map_err(std::io::Error::other)?];
        stream.read_exact(&mut body).await?;
    } else if !codings.is_empty() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            if size == 0 {
                // Trailers, up to an empty line.
                while stream.read_line(&mut line).await? > 2 {}
                break;
            }
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await?;
            body.extend_from_slice(&chunk[..size]);
        }
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// The answer of a kind, with what is no answer at all among them.
fn answer(kind: &str, head: bool) -> Vec<u8> {
    let (head_part, body) = match kind {
        "chunked" => ("200 OK\r\ntransfer-encoding: chunked".into(), "2\r\nok\r\n0\r\n\r\n".into()),
        "none" => ("204 No Content".into(), String::new()),
        "unmodified" => ("304 Not Modified\r\ncontent-length: 5".into(), String::new()),
        "refused" => ("403 Forbidden\r\ncontent-length: 2".into(), "ok".into()),
        "eof" => ("200 OK".into(), "ok".into()),
        "close" => ("200 OK\r\nconnection: close\r\ncontent-length: 2".into(), "ok".into()),
        "identity" => ("200 OK\r\ntransfer-encoding: identity\r\ncontent-length: 2".into(), "ok".into()),
        "both" => (
            "200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked".into(),
            "2\r\nok\r\n0\r\n\r\n".into(),
        ),
        "twice" => ("200 OK\r\ncontent-length: 2\r\ncontent-length: 2".into(), "ok".into()),
        "long" => {
            let more = "okHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL";
            ("200 OK\r\ncontent-length: 2".into(), more.into())
        }
        "hints" => {
            ("103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2".into(), "ok".into())
        }
        "hundred" => {
            let hint = "100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\nconnection: x-hop\r\nx-hop: b\r\n\
                        x-piko-error: c\r\n\r\nHTTP/1.1 ";
            (format!("{}200 OK\r\ncontent-length: 2", hint.repeat(100)), "ok".into())
        }
        "switch" => {
            ("101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket".into(), "hello".into())
        }
        "short" => ("200 OK\r\ncontent-length: 9".into(), "ok".into()),
        "garbage" => return b"+OK POP3 ready\r\n\r\n".to_vec(),
        // An alert, as OpenSSL sends it to a request without TLS.
        "tls" => return b"\x15\x03\x01\x00\x02\x02\x46".to_vec(),
        "icy" => return b"ICY 200 OK\r\n\r\n".to_vec(),
        "lengths" => ("200 OK\r\ncontent-length: 2\r\ncontent-length: 3".into(), "okk".into()),
        "gzip" => ("200 OK\r\ntransfer-encoding: gzip, chunked".into(), "0\r\n\r\n".into()),
        "colon" => ("200 OK\r\nno field this\r\ncontent-length: 2".into(), "ok".into()),
        "many" => {
            let fields: String = (0..2000).map(|n| format!("\r\nset-cookie: c{n}=1")).collect();
            (format!("200 OK{fields}\r\ncontent-length: 2"), "ok".into())
        }
        "large" => (format!("200 OK\r\nx: {}\r\ncontent-length: 2", "x".repeat(200 << 10)), "ok".into()),
        "announce" => ("200 OK\r\nkeep-alive: timeout=1\r\ncontent-length: 2".into(), "ok".into()),
        "ntlm" => ("401 Unauthorized\r\nwww-authenticate: NTLM\r\ncontent-length: 2".into(), "ok".into()),
        "ntlm2" => {
            ("401 Unauthorized\r\nwww-authenticate: NTLM TlRM\r\ncontent-length: 2".into(), "ok".into())
        }
        _ => (String::from("200 OK\r\ncontent-length: 2"), String::from("ok")),
    };
    format!("HTTP/1.1 {head_part}\r\n\r\n{}", if head { "" } else { &body }).into_bytes()
}
