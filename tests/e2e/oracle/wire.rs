//! Messages as bytes: written as a case says, read as they come, and compared by what they mean.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::case::{Case, Framing, Version};

type Fields = Vec<(String, String)>;
type Error = Box<dyn std::error::Error + Send + Sync>;

/// A message that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Method and target, or the status.
    pub(super) line: String,
    /// Names in lower case.
    pub(super) fields: Fields,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Fields,
}

/// Of one connection, not of the message (RFC 9110, section 7.6.1), and its framing, which each hop writes anew.
const CONNECTION: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
];

impl Seen {
    /// The list, for requests: `docs/request.md`, "What is not passed as it came".
    pub(super) fn may_be_heard(mut self) -> Seen {
        self.fields.retain(|(name, _)| {
            !CONNECTION.contains(&name.as_str())
                && !name.starts_with("x-forwarded-")
                && name != "x-piko-endpoint"
        });
        // Several are one (RFC 9113, section 8.2.3).
        let cookies: Vec<_> =
            self.fields.iter().filter(|(name, _)| name == "cookie").map(|(_, value)| value.clone()).collect();
        self.fields.retain(|(name, _)| name != "cookie");
        if !cookies.is_empty() {
            self.fields.push(("cookie".into(), cookies.join("; ")));
        }
        self.settled(false)
    }

    /// The list, for answers.
    pub(super) fn may_be_read(mut self, case: &Case) -> Seen {
        self.fields.retain(|(name, _)| !CONNECTION.contains(&name.as_str()) && name != "date");
        // HTTP/1.0 has no trailers.
        self.settled(case.version == Version::Http10)
    }

    /// The order of fields of different names means nothing (RFC 9110, section 5.3).
    fn settled(mut self, no_trailers: bool) -> Seen {
        self.fields.sort_by(|a, b| a.0.cmp(&b.0));
        self.trailers.sort_by(|a, b| a.0.cmp(&b.0));
        if no_trailers {
            self.trailers.clear();
        }
        self
    }
}

/// A message's head and body as HTTP/1 has them.
pub(super) fn write(line: &str, fields: &[(String, String)], framing: &Framing, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{line}\r\n").into_bytes();
    let mut field = |name: &str, value: &str| bytes.extend(format!("{name}: {value}\r\n").bytes());
    fields.iter().for_each(|(name, value)| field(name, value));
    match framing {
        Framing::None | Framing::Close => {}
        Framing::Length => field("Content-Length", &body.len().to_string()),
        Framing::Chunked(_, trailers) => {
            field("Transfer-Encoding", "chunked");
            if !trailers.is_empty() {
                field("Trailer", &announced(trailers));
            }
        }
    }
    bytes.extend(b"\r\n");
    match framing {
        Framing::Chunked(piece, trailers) => {
            for chunk in body.chunks(*piece) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n");
            trailers.iter().for_each(|(name, value)| bytes.extend(format!("{name}: {value}\r\n").bytes()));
            bytes.extend(b"\r\n");
        }
        Framing::None => {}
        Framing::Length | Framing::Close => bytes.extend(body),
    }
    bytes
}

/// The value of `Trailer`.
fn announced(trailers: &[(String, String)]) -> String {
    trailers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Reads one message off a stream; what follows is not looked at. `bodiless`: it has a head only.
pub(super) async fn read(stream: &mut TcpStream, request: bool, bodiless: bool) -> Result<Seen, Error> {
    let mut bytes = Vec::new();
    loop {
        if let Some(seen) = parse(&bytes, request, bodiless, false)? {
            return Ok(seen);
        }
        let mut chunk = [0; 16_384];
        match stream.read(&mut chunk).await? {
            0 => return parse(&bytes, request, bodiless, true)?.ok_or_else(|| broken(&bytes)),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}

fn broken(bytes: &[u8]) -> Error {
    format!("broke off: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(400)])).into()
}

/// The message, if it is whole. `ended`: nothing follows.
fn parse(bytes: &[u8], request: bool, bodiless: bool, ended: bool) -> Result<Option<Seen>, Error> {
    let Some((line, fields, mut at)) = head(bytes)? else { return Ok(None) };
    if line.starts_with("HTTP/1.1 1") {
        return parse(&bytes[at..], request, bodiless, ended);
    }
    let of = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let words: Vec<_> = line.split(' ').collect();
    let line = if request { words[..2].join(" ") } else { words[1].to_owned() };
    let mut seen = Seen { line, ..Seen::default() };
    let none = bodiless || (!request && matches!(seen.line.as_str(), "204" | "304"));
    if !none && of("transfer-encoding").is_some() {
        loop {
            let Some(end) = bytes[at..].windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
            let size = std::str::from_utf8(&bytes[at..at + end])?;
            let size = usize::from_str_radix(size.trim(), 16).map_err(|_| broken(&bytes[at..]))?;
            at += end + 2;
            if size == 0 {
                // The trailers look like a head without its line.
                let rest = [b"x\r\n", &bytes[at..]].concat();
                let Some((_, trailers, _)) = head(&rest)? else { return Ok(None) };
                seen.trailers = trailers;
                break;
            }
            let Some(data) = bytes.get(at..at + size + 2) else { return Ok(None) };
            seen.body.extend_from_slice(&data[..size]);
            at += size + 2;
        }
    } else if let Some(length) = of("content-length").filter(|_| !none) {
        let Some(data) = bytes.get(at..at + length.parse::<usize>()?) else { return Ok(None) };
        seen.body = data.to_vec();
    } else if !none && !request {
        if !ended {
            return Ok(None);
        }
        seen.body = bytes[at..].to_vec();
    }
    seen.fields = fields;
    Ok(Some(seen))
}

/// First line, fields, and where the head ends.
fn head(bytes: &[u8]) -> Result<Option<(String, Fields, usize)>, Error> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let field = |line: &str| {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("no field: {line:?}"))?;
        Ok::<_, Error>((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
    };
    Ok(Some((line, lines.map(field).collect::<Result<_, _>>()?, end + 4)))
}

/// Fields of a request that are there in every version.
fn named(case: &Case) -> Fields {
    let mut fields = vec![("X-Piko-Endpoint".to_owned(), "oracle".to_owned())];
    fields.extend(case.fields.iter().cloned());
    fields.push(("X-Answer".into(), "as ordered".into()));
    // Trailers reach those who say that they want them (RFC 9110, section 6.5.1).
    fields.push(("TE".into(), "trailers".into()));
    fields
}

/// Sends the request by HTTP/1, in several writes, and reads the answer.
pub(super) async fn ask_1(to: SocketAddr, case: &Case) -> Result<Seen, Error> {
    let version = if case.version == Version::Http10 { "1.0" } else { "1.1" };
    let mut fields = vec![("Host".to_owned(), "oracle.example:8000".to_owned())];
    fields.extend(named(case));
    fields.push(("Connection".into(), "close".into()));
    let line = format!("{} {} HTTP/{version}", case.method, case.target);
    let bytes = write(&line, &fields, &case.framing, &case.body);
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut cuts: Vec<_> = case.pace.iter().map(|cut| cut.index(bytes.len())).collect();
    cuts.sort_unstable();
    let mut from = 0;
    for to in cuts.into_iter().chain([bytes.len()]) {
        stream.write_all(&bytes[from..to]).await?;
        from = to;
        tokio::task::yield_now().await;
    }
    read(&mut stream, false, case.method == "HEAD").await
}

/// The same by HTTP/2.
pub(super) async fn ask_2(to: SocketAddr, case: &Case) -> Result<Seen, Error> {
    let stream = TcpStream::connect(to).await?;
    // By default h2 ends a connection on which some hundred small frames wait for a reader that is late.
    let mut builder = h2::client::Builder::new();
    let (client, connection) = builder.initial_connection_window_size(1 << 20).handshake(stream).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let uri = format!("http://oracle.example:8000{}", case.target);
    let mut request = Request::builder().method(case.method).uri(uri);
    for (name, value) in named(case) {
        request = request.header(name, value);
    }
    if case.framing == Framing::Length {
        request = request.header("content-length", case.body.len());
    }
    if let Framing::Chunked(_, trailers) = &case.framing
        && !trailers.is_empty()
    {
        request = request.header("trailer", announced(trailers));
    }
    let end = case.framing == Framing::None;
    let (answer, mut send) = client.ready().await?.send_request(request.body(())?, end)?;
    if let (false, piece) = (end, if let Framing::Chunked(piece, _) = case.framing { piece } else { 10_000 })
    {
        for chunk in case.body.chunks(piece) {
            send.send_data(Bytes::copy_from_slice(chunk), false)?;
            tokio::task::yield_now().await;
        }
        match &case.framing {
            Framing::Chunked(_, trailers) if !trailers.is_empty() => {
                let mut map = http::HeaderMap::new();
                for (name, value) in trailers {
                    map.append(http::HeaderName::try_from(name)?, value.parse()?);
                }
                send.send_trailers(map)?;
            }
            _ => send.send_data(Bytes::new(), true)?,
        }
    }
    let (parts, mut body) = answer.await?.into_parts();
    let list = |map: &http::HeaderMap| -> Fields {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        map.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
    };
    let mut seen =
        Seen { line: parts.status.as_str().to_owned(), fields: list(&parts.headers), ..Seen::default() };
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        seen.body.extend_from_slice(&data);
    }
    seen.trailers = body.trailers().await?.as_ref().map(list).unwrap_or_default();
    Ok(seen)
}
