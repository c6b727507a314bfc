//! The load generator's end of a connection: HTTP/1.1 with as little work as can be, so that the proxy is what is
//! measured. Understands sized and chunked answers; anything else is an error.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What is noted of an answer.
#[derive(Default)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Bytes of the body, framing excluded.
    pub length: usize,
    /// Empty lines in a chunked body: the ends of server-sent events.
    pub events: usize,
}

/// A kept connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What of the buffer was read and not used yet.
    begin: usize,
    end: usize,
}

const BUFFER: usize = 64 * 1024;

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; BUFFER], begin: 0, end: 0 })
    }

    /// Sends a request and reads its answer to the end.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request).await.context("sending")?;
        let head = loop {
            let unread = &self.buffer[self.begin..self.end];
            if let Some(at) = unread.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = Head::parse(&unread[..at])?;
                self.begin += at + 4;
                break head;
            }
            self.fill().await.context("reading the header")?;
        };
        let mut answer = Answer { status: head.status, ..Answer::default() };
        match head.length {
            Some(length) => self.read_sized(length).await.context("reading a sized body")?,
            None => self.read_chunked(&mut answer).await.context("reading a chunked body")?,
        }
        answer.length += head.length.unwrap_or(0);
        ensure!(self.begin == self.end, "more bytes than the answer has");
        Ok(answer)
    }

    /// Reads more; unread bytes move to the front when the buffer is used up.
    async fn fill(&mut self) -> Result<()> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            ensure!(self.begin > 0, "a header or a chunk line of {BUFFER} bytes");
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        let read = self.stream.read(&mut self.buffer[self.end..]).await?;
        ensure!(read > 0, "the connection was closed");
        self.end += read;
        Ok(())
    }

    async fn read_sized(&mut self, length: usize) -> Result<()> {
        let mut left = length;
        loop {
            let taken = left.min(self.end - self.begin);
            self.begin += taken;
            left -= taken;
            if left == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn read_chunked(&mut self, answer: &mut Answer) -> Result<()> {
        let mut last = 0;
        loop {
            let mut left = self.chunk_size().await?;
            if left == 0 {
                ensure!(self.line().await? == 0, "a trailer");
                return Ok(());
            }
            answer.length += left;
            while left > 0 {
                if self.begin == self.end {
                    self.fill().await?;
                }
                let taken = left.min(self.end - self.begin);
                for byte in &self.buffer[self.begin..self.begin + taken] {
                    answer.events += usize::from(last == b'\n' && *byte == b'\n');
                    last = *byte;
                }
                self.begin += taken;
                left -= taken;
            }
            ensure!(self.line().await? == 0, "a chunk that is longer than it says");
        }
    }

    async fn chunk_size(&mut self) -> Result<usize> {
        let length = self.line().await?;
        let line = &self.buffer[self.begin - 2 - length..self.begin - 2];
        let digits = line.split(|b| *b == b';').next().unwrap_or_default();
        Ok(usize::from_str_radix(std::str::from_utf8(digits)?, 16)?)
    }

    /// Passes over a line, its end included, and gives its length without.
    async fn line(&mut self) -> Result<usize> {
        loop {
            let unread = &self.buffer[self.begin..self.end];
            if let Some(at) = unread.windows(2).position(|w| w == b"\r\n") {
                self.begin += at + 2;
                return Ok(at);
            }
            self.fill().await?;
        }
    }
}

struct Head {
    status: u16,
    /// Absent when the body is chunked.
    length: Option<usize>,
}

impl Head {
    fn parse(head: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(head)?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|l| l.strip_prefix("HTTP/1.1 ")).and_then(|l| l.get(..3));
        let status = status.context("no HTTP/1.1 status line")?.parse()?;
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { bail!("a header line without a colon") };
            if name.eq_ignore_ascii_case("content-length") {
                return Ok(Self { status, length: Some(value.trim().parse()?) });
            }
            if name.eq_ignore_ascii_case("transfer-encoding") {
                ensure!(value.trim().eq_ignore_ascii_case("chunked"), "an unknown transfer coding");
                return Ok(Self { status, length: None });
            }
        }
        bail!("an answer without a length, status {status}")
    }
}

/// The values of a metric: with these labels, or whatever they are.
pub async fn metrics(admin: SocketAddr, name: &str) -> Result<Vec<String>> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench.local\r\nconnection: close\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    let lines = page.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    Ok(lines.filter_map(|line| Some(line.rsplit_once(' ')?.1.to_owned())).collect())
}
