//! A name server on loopback that says what a test tells it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::Instant;

/// The longest answer over UDP; of longer ones the head goes out, and the asker comes again over TCP.
const MAX_UDP: usize = 1232;

/// What it does with a question.
#[derive(Clone)]
pub enum Say {
    Records(u32, Vec<RData>),
    Code(ResponseCode),
    Garbage,
    Silence,
}

/// What it says, and what it was asked.
#[derive(Default)]
struct State {
    zone: HashMap<(String, RecordType), Say>,
    asked: Vec<(String, RecordType, Instant)>,
}

/// The server; it ends with its test's runtime.
pub struct NameServer {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

pub fn a(ip: [u8; 4]) -> RData {
    RData::A(A(ip.into()))
}

pub fn aaaa(ip: &str) -> RData {
    RData::AAAA(AAAA(ip.parse().unwrap()))
}

pub fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, Name::from_ascii(target).unwrap()))
}

impl NameServer {
    pub async fn start() -> Self {
        let (udp, tcp) = sockets().await;
        let server = Self { state: Arc::default(), address: udp.local_addr().unwrap() };
        let (state, shared) = (Arc::clone(&server.state), Arc::clone(&server.state));
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((size, from)) = udp.recv_from(&mut buffer).await {
                if let Some(bytes) = answer(&buffer[..size], &state, MAX_UDP) {
                    let _ = udp.send_to(&bytes, from).await;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn say(&self, name: &str, kind: RecordType, say: Say) {
        self.state.lock().unwrap().zone.insert((name.to_owned(), kind), say);
    }

    pub fn records(&self, name: &str, kind: RecordType, ttl: u32, records: impl Into<Vec<RData>>) {
        self.say(name, kind, Say::Records(ttl, records.into()));
    }

    /// When it was asked this.
    pub fn asked(&self, name: &str, kind: RecordType) -> Vec<Instant> {
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|(n, k, _)| n == name && *k == kind).map(|(_, _, at)| *at).collect()
    }
}

/// Sockets of one port. Another process may take it between the two.
async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

/// Answers the questions of one connection, each after its length.
async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    while let Ok(size) = stream.read_u16().await {
        let mut question = vec![0; size.into()];
        if stream.read_exact(&mut question).await.is_err() {
            return;
        }
        let Some(bytes) = answer(&question, &state, usize::MAX) else { continue };
        let size = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        if stream.write_all(&[&size[..], &bytes].concat()).await.is_err() {
            return;
        }
    }
}

fn answer(question: &[u8], state: &Mutex<State>, max: usize) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries.first().unwrap();
    let name = query.name().to_ascii().trim_end_matches('.').to_lowercase();
    let kind = query.query_type();
    let State { zone, asked } = &mut *state.lock().unwrap();
    asked.push((name.clone(), kind, Instant::now()));
    let say = zone.get(&(name.clone(), kind)).cloned().unwrap_or_else(|| {
        let is_known = zone.keys().any(|(n, _)| *n == name);
        if is_known { Say::Records(0, Vec::new()) } else { Say::Code(ResponseCode::NXDomain) }
    });
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.add_query(query.clone());
    match say {
        Say::Records(ttl, records) => {
            for data in records {
                message.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
            }
        }
        Say::Code(code) => message.metadata.response_code = code,
        Say::Garbage => return Some(b"\x00\x01 this is not DNS".to_vec()),
        Say::Silence => return None,
    }
    let bytes = message.to_vec().unwrap();
    if bytes.len() <= max {
        return Some(bytes);
    }
    message.metadata.truncation = true;
    message.answers.clear();
    Some(message.to_vec().unwrap())
}
