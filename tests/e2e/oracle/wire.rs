//! Messages of HTTP/1 as bytes: written as a case says, in its pace, and read as they come.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::case::{Body, Fields, Framing, Pace};

pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;

/// A message that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// 103s before it.
    pub(super) hints: Vec<Fields>,
    /// Method and target, or the status.
    pub(super) line: String,
    /// Names in lower case.
    pub(super) fields: Fields,
    pub(super) body: Body,
    pub(super) trailers: Fields,
}

impl Seen {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// The bytes of Latin-1 text.
pub(super) fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|char| u8::try_from(u32::from(char)).expect("Latin-1")).collect()
}

/// Latin-1 text of bytes.
pub(super) fn text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// A head: its line, its fields, and those that frame a body of this length.
pub(super) fn head(line: &str, fields: &Fields, framing: &Framing, length: usize) -> Vec<u8> {
    let mut head = bytes(&format!("{line}\r\n"));
    let mut field = |name: &str, value: &str| head.extend(bytes(&format!("{name}: {value}\r\n")));
    fields.iter().for_each(|(name, value)| field(name, value));
    match framing {
        Framing::None | Framing::Close => {}
        Framing::Length => field("Content-Length", &length.to_string()),
        Framing::Chunked(chunks) => {
            field("Transfer-Encoding", "chunked");
            if chunks.announced && !chunks.trailers.is_empty() {
                field("Trailer", &names(&chunks.trailers));
            }
        }
    }
    head.extend(b"\r\n");
    head
}

/// The value of `Trailer`.
pub(super) fn names(trailers: &Fields) -> String {
    trailers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// A body in its framing.
pub(super) fn framed(framing: &Framing, body: &[u8]) -> Vec<u8> {
    let Framing::Chunked(chunks) = framing else { return body.to_vec() };
    let mut framed = Vec::with_capacity(body.len() * 2);
    for chunk in body.chunks(chunks.size) {
        framed.extend(format!("{:x}\r\n", chunk.len()).bytes());
        framed.extend(chunk);
        framed.extend(b"\r\n");
    }
    framed.extend(b"0\r\n");
    chunks.trailers.iter().for_each(|(name, value)| framed.extend(bytes(&format!("{name}: {value}\r\n"))));
    framed.extend(b"\r\n");
    framed
}

/// Writes, cut where the case cuts.
pub(super) async fn paced(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    pace: &Pace,
) -> std::io::Result<()> {
    let mut cuts: Vec<_> = pace.iter().map(|(at, waits)| (at.index(bytes.len() + 1), *waits)).collect();
    cuts.sort_unstable();
    let mut from = 0;
    for (to, waits) in cuts.into_iter().chain([(bytes.len(), false)]) {
        stream.write_all(&bytes[from..to]).await?;
        from = to;
        if waits {
            tokio::time::sleep(Duration::from_millis(1)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// A side of a connection from which messages are read.
pub(super) struct Reader<R> {
    stream: R,
    /// Read and not yet taken.
    bytes: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(stream: R) -> Reader<R> {
        Reader { stream, bytes: Vec::new() }
    }

    /// More bytes; `false`: none come.
    async fn more(&mut self) -> Result<bool, Error> {
        let mut chunk = [0; 16_384];
        let n = self.stream.read(&mut chunk).await?;
        self.bytes.extend_from_slice(&chunk[..n]);
        Ok(n > 0)
    }

    fn broken(&self) -> Error {
        let first = self.bytes[..self.bytes.len().min(400)].escape_ascii();
        format!("broke off after {} bytes: {first}", self.bytes.len()).into()
    }

    /// First line and fields.
    pub(super) async fn head(&mut self) -> Result<(String, Fields), Error> {
        loop {
            if let Some((line, fields, end)) = parse_head(&self.bytes)? {
                self.bytes.drain(..end);
                return Ok((line, fields));
            }
            if !self.more().await? {
                return Err(self.broken());
            }
        }
    }

    /// A request's head; its body is read by [`Reader::body`].
    pub(super) async fn request(&mut self) -> Result<Seen, Error> {
        let (line, fields) = self.head().await?;
        let line = line.rsplit_once(' ').ok_or("a request line has three words")?.0.to_owned();
        Ok(Seen { line, fields, ..Seen::default() })
    }

    /// Is it told to go on with its body? If not, its answer begins.
    pub(super) async fn goes_on(&mut self) -> Result<bool, Error> {
        const GO_ON: &[u8] = b"HTTP/1.1 100 ";
        while self.bytes.len() < GO_ON.len() {
            if !self.more().await? {
                return Err(self.broken());
            }
        }
        Ok(self.bytes.starts_with(GO_ON))
    }

    /// An answer to the end of its body. `bodiless`: whatever its head says, it has none.
    pub(super) async fn answer(&mut self, bodiless: bool) -> Result<Seen, Error> {
        let mut hints = Vec::new();
        loop {
            let (line, fields) = self.head().await?;
            let status = line.split(' ').nth(1).ok_or("a status line has two words")?.to_owned();
            match status.as_str() {
                "100" => continue,
                "103" => {
                    hints.push(fields);
                    continue;
                }
                _ => {}
            }
            let none = bodiless || matches!(status.as_str(), "101" | "204" | "304");
            let mut seen = Seen { hints, line: status, fields, ..Seen::default() };
            if !none {
                self.body(&mut seen, false).await?;
            }
            return Ok(seen);
        }
    }

    /// The body of a message whose head was read.
    pub(super) async fn body(&mut self, seen: &mut Seen, request: bool) -> Result<(), Error> {
        if seen.field("transfer-encoding").is_some() {
            return self.chunks(seen).await;
        }
        if let Some(length) = seen.field("content-length") {
            seen.body = Body(self.exactly(length.parse()?).await?);
        } else if !request {
            seen.body = Body(self.rest().await?);
        }
        Ok(())
    }

    async fn chunks(&mut self, seen: &mut Seen) -> Result<(), Error> {
        loop {
            let end = loop {
                match self.bytes.windows(2).position(|two| two == b"\r\n") {
                    Some(end) => break end,
                    None if self.more().await? => {}
                    None => return Err(self.broken()),
                }
            };
            let size = text(&self.bytes[..end]);
            let size = usize::from_str_radix(&size, 16).map_err(|_| format!("no chunk's size: {size:?}"))?;
            if size == 0 {
                // The trailers look like a head whose line is the last chunk's.
                seen.trailers = self.head().await?.1;
                return Ok(());
            }
            self.bytes.drain(..end + 2);
            let data = self.exactly(size + 2).await?;
            seen.body.0.extend_from_slice(data.strip_suffix(b"\r\n").ok_or("a chunk ends with its line")?);
        }
    }

    async fn exactly(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        while self.bytes.len() < length {
            if !self.more().await? {
                return Err(self.broken());
            }
        }
        let rest = self.bytes.split_off(length);
        Ok(std::mem::replace(&mut self.bytes, rest))
    }

    /// All that comes until the other side ends.
    pub(super) async fn rest(&mut self) -> Result<Vec<u8>, Error> {
        while self.more().await? {}
        Ok(std::mem::take(&mut self.bytes))
    }

    /// What was read beyond the last message.
    pub(super) fn left(&self) -> &[u8] {
        &self.bytes
    }
}

/// First line, fields, and where the head ends.
fn parse_head(bytes: &[u8]) -> Result<Option<(String, Fields, usize)>, Error> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let all = text(&bytes[..end]);
    let mut lines = all.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let field = |line: &str| {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("no field: {line:?}"))?;
        Ok::<_, Error>((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
    };
    Ok(Some((line, lines.map(field).collect::<Result<_, _>>()?, end + 4)))
}
