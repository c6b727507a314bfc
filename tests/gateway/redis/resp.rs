//! As much of the protocol of Redis as tests need to speak without a client library.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One connection of a client.
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { stream: TcpStream::connect(address).await?, received: Vec::new() })
    }

    /// Sends a command and waits for its answer.
    pub async fn ask(&mut self, words: &[&str]) -> io::Result<String> {
        self.send(words).await?;
        self.receive().await
    }

    /// Sends a command whose answer is to be received later.
    pub async fn send(&mut self, words: &[&str]) -> io::Result<()> {
        self.stream.write_all(&request(words)).await
    }

    /// Waits for the next answer. One that was not waited for to the end is not lost.
    pub async fn receive(&mut self) -> io::Result<String> {
        loop {
            if let Some((answer, rest)) = reply(&self.received) {
                self.received = rest.to_vec();
                return answer.map_err(io::Error::other);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Sends a command and waits for its answer.
pub fn ask(stream: &mut (impl Read + Write), words: &[&str]) -> io::Result<String> {
    stream.write_all(&request(words))?;
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some((answer, _)) = reply(&received) {
            return answer.map_err(io::Error::other);
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => received.extend_from_slice(&chunk[..length]),
        }
    }
}

pub fn request(words: &[&str]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", words.len());
    words.iter().for_each(|word| text += &format!("${}\r\n{word}\r\n", word.len()));
    text.into_bytes()
}

/// The first reply within `bytes` and what follows it; nothing while it is incomplete.
fn reply(bytes: &[u8]) -> Option<(Result<String, String>, &[u8])> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, mut rest) = (&bytes[..end], &bytes[end + 2..]);
    let text = String::from_utf8_lossy(line.get(1..).unwrap_or_default()).into_owned();
    let answer = match line.first() {
        Some(b'+' | b':') => Ok(text),
        Some(b'-') => Err(text),
        Some(b'$') => {
            let Ok(length) = text.parse() else { return Some((Ok(String::new()), rest)) };
            let value = String::from_utf8_lossy(rest.get(..length)?).into_owned();
            rest = rest.get(length + 2..)?;
            Ok(value)
        }
        Some(b'*') => {
            let mut items = Vec::new();
            for _ in 0..text.parse().unwrap_or(0) {
                let (item, after) = reply(rest)?;
                items.push(item);
                rest = after;
            }
            items.into_iter().collect::<Result<Vec<_>, _>>().map(|items| items.join("\n"))
        }
        _ => Err(format!("not RESP: {}", String::from_utf8_lossy(line))),
    };
    Some((answer, rest))
}
