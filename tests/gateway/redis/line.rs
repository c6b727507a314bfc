//! A line between a client and a server that can be slow, stuck, noisy or cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What a noisy line answers.
const GARBAGE: &[u8] = b"\xff\xfe no RESP \x00\r\n";
/// How many chunks may be under way in each direction.
const QUEUE: usize = 1024;
const CHUNK_BYTES: usize = 64 * 1024;

/// A TCP proxy at a port of its own, run by tasks of the test's runtime.
pub struct Line {
    address: SocketAddr,
    server: SocketAddr,
    conduct: watch::Sender<Conduct>,
    accepted: Arc<AtomicUsize>,
    carrier: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Default)]
struct Conduct {
    delay: Duration,
    mode: Mode,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Mode {
    #[default]
    Forward,
    Stall,
    Garbage,
}

/// Bytes on their way; none at all stand for the end of the connection.
struct Chunk {
    due: Instant,
    bytes: Bytes,
}

impl Line {
    pub async fn to(server: SocketAddr) -> Self {
        let address = super::free_address();
        let mut line =
            Self { address, server, conduct: watch::Sender::default(), accepted: Arc::default(), carrier: None };
        line.mend().await;
        line
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a server without TLS, behind this line.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// How many connections it has accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Closes all connections and refuses new ones.
    pub async fn cut(&mut self) {
        if let Some(carrier) = self.carrier.take() {
            carrier.abort();
            let _ = carrier.await;
        }
    }

    /// Makes it as good as new: open, quick, quiet. What a stall held back arrives.
    pub async fn mend(&mut self) {
        self.conduct.send_replace(Conduct::default());
        if self.carrier.is_none() {
            let listener = TcpListener::bind(self.address).await.unwrap();
            let carry = carry_all(listener, self.server, self.conduct.subscribe(), self.accepted.clone());
            self.carrier = Some(tokio::spawn(carry));
        }
    }

    /// Bytes take this much longer in each direction; a round trip takes twice as much.
    pub fn delay(&self, delay: Duration) {
        self.conduct.send_modify(|conduct| conduct.delay = delay);
    }

    /// Holds all bytes back while connections stay open.
    pub fn stall(&self) {
        self.conduct.send_modify(|conduct| conduct.mode = Mode::Stall);
    }

    /// Answers with noise: the server sees no more commands and the client none of its replies.
    pub fn garbage(&self) {
        self.conduct.send_modify(|conduct| conduct.mode = Mode::Garbage);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(carrier) = &self.carrier {
            carrier.abort();
        }
    }
}

/// Carries all connections within one task, so that its end closes each of them and the listener.
async fn carry_all(
    listener: TcpListener,
    server: SocketAddr,
    conduct: watch::Receiver<Conduct>,
    accepted: Arc<AtomicUsize>,
) {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            client = listener.accept() => {
                accepted.fetch_add(1, Ordering::Relaxed);
                connections.push(carry(client.unwrap().0, server, conduct.clone()));
            }
            Some(_) = connections.next() => {}
        }
    }
}

/// Carries one connection until either side closes it.
async fn carry(client: TcpStream, server: SocketAddr, conduct: watch::Receiver<Conduct>) -> std::io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (up, commands) = mpsc::channel(QUEUE);
    let (down, replies) = mpsc::channel(QUEUE);
    let read = async {
        tokio::join!(read(from_client, &up, &down, &conduct), read(from_server, &down, &down, &conduct));
        // The last bytes are still on their way; the writers see the end after them.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = read => {}
        () = write(to_server, commands, conduct.clone()) => {}
        () = write(to_client, replies, conduct.clone()) => {}
    }
    Ok(())
}

/// Queues what arrives, stamped with the time at which it is due.
async fn read(
    mut from: OwnedReadHalf,
    onward: &mpsc::Sender<Chunk>,
    client: &mpsc::Sender<Chunk>,
    conduct: &watch::Receiver<Conduct>,
) {
    loop {
        let mut bytes = BytesMut::with_capacity(CHUNK_BYTES);
        let ended = !matches!(from.read_buf(&mut bytes).await, Ok(1..));
        let Conduct { delay, mode } = *conduct.borrow();
        let due = Instant::now() + delay;
        let sent = if mode == Mode::Garbage && !ended {
            client.send(Chunk { due, bytes: Bytes::from_static(GARBAGE) }).await
        } else {
            onward.send(Chunk { due, bytes: bytes.freeze() }).await
        };
        if ended || sent.is_err() {
            return;
        }
    }
}

async fn write(mut to: OwnedWriteHalf, mut queue: mpsc::Receiver<Chunk>, mut conduct: watch::Receiver<Conduct>) {
    while let Some(chunk) = queue.recv().await {
        if chunk.due > Instant::now() {
            tokio::time::sleep_until(chunk.due).await;
        }
        let stalled = conduct.wait_for(|conduct| conduct.mode != Mode::Stall).await.is_err();
        if stalled || chunk.bytes.is_empty() || to.write_all(&chunk.bytes).await.is_err() {
            return;
        }
    }
}
