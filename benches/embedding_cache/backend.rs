//! The backend: vectors rendered beforehand, as many as a request has items, as fast as one thread can.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use crate::Row;

/// What every answer has before its vectors, and after.
const FRAME: (&str, &str) =
    (r#"{"object":"list","data":["#, r#"],"model":"m","usage":{"prompt_tokens":64,"total_tokens":64}}"#);
const METADATA: &[u8] = br#"{"modelInfo":[{"modelUrl":"ngc://nim/bench:1","shortName":"bench"}],"version":"1"}"#;

/// Answers to requests of these rows.
#[derive(Default)]
struct Answers(HashMap<(usize, bool, usize), Vec<u8>>);

/// Serves on a thread of its own, as long as the process lives.
pub fn serve(listen: SocketAddr, delay: Duration) -> Result<()> {
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async move {
            let listener = TcpListener::from_std(listener)?;
            let answers = Rc::new(std::cell::RefCell::new(Answers::default()));
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let answers = Rc::clone(&answers);
                tokio::task::spawn_local(async move { converse(stream, &answers, delay).await });
            }
        })
    });
    Ok(())
}

/// The length of the body that answers so many items.
pub fn length(row: &Row, items: usize) -> usize {
    let separators = items - 1;
    let vectors: usize = (0..items).map(|at| item(row.dimensions, row.is_base64, at).len()).sum();
    FRAME.0.len() + FRAME.1.len() + vectors + separators
}

async fn converse(mut stream: TcpStream, answers: &std::cell::RefCell<Answers>, delay: Duration) -> Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut end = 0;
    loop {
        let read = stream.read(&mut buffer[end..]).await?;
        end += read;
        let Some(head) = buffer[..end].windows(4).position(|four| four == b"\r\n\r\n").filter(|_| read > 0) else {
            anyhow::ensure!(read > 0, "the gateway left");
            continue;
        };
        let text = std::str::from_utf8(&buffer[..head])?.to_ascii_lowercase();
        let stated = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = stated.map_or(Ok(0), |stated| stated.trim().parse())?;
        let whole = head + 4 + length;
        if end < whole {
            continue;
        }
        let body = &buffer[head + 4..whole];
        if body.is_empty() {
            stream.write_all(&http(METADATA)).await?;
        } else {
            let key = read_request(body)?;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            // Out of its cell while it is written, since another connection may want it meanwhile.
            let answer = answers.borrow_mut().0.remove(&key).unwrap_or_else(|| http(&answer(key)));
            stream.write_all(&answer).await?;
            answers.borrow_mut().0.insert(key, answer);
        }
        buffer.copy_within(whole..end, 0);
        end -= whole;
    }
}

/// Dimensions, whether as base64, and items. Texts of the bench have no quotes in them.
fn read_request(body: &[u8]) -> Result<(usize, bool, usize)> {
    let quotes = |part: &[u8]| part.iter().filter(|b| **b == b'"').count();
    let at = body.windows(9).position(|nine| nine == b"\"input\":[").context("no input")?;
    let list = body[at..].split(|b| *b == b']').next().unwrap_or_default();
    let items = (quotes(list) - 2) / 2;
    let rest = [&body[..at], &body[at + list.len()..]].concat();
    let rest = String::from_utf8_lossy(&rest);
    let dimensions = rest.split_once("bench-").and_then(|(_, rest)| rest.split('"').next()).context("a model")?;
    Ok((dimensions.parse()?, rest.contains("base64"), items))
}

fn answer((dimensions, is_base64, items): (usize, bool, usize)) -> Vec<u8> {
    let all: Vec<String> = (0..items).map(|at| item(dimensions, is_base64, at)).collect();
    [FRAME.0, &all.join(","), FRAME.1].concat().into_bytes()
}

fn item(dimensions: usize, is_base64: bool, at: usize) -> String {
    let numbers = (0..dimensions).map(|d| (((at * dimensions + d) as f64).sin() / 32.0) as f32);
    let embedding = if is_base64 {
        let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        format!("\"{}\"", STANDARD.encode(bytes))
    } else {
        let texts: Vec<String> = numbers.map(|number| number.to_string()).collect();
        format!("[{}]", texts.join(","))
    };
    format!(r#"{{"object":"embedding","index":{at},"embedding":{embedding}}}"#)
}

fn http(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}
