//! Ports for servers that the tests start.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// First port handed out, and how many: below those that the system gives to outgoing connections.
const PORTS: (u32, u32) = (10_000, 20_000);

/// An address that nobody listens on, and that no outgoing connection takes before its server starts or while it is
/// down.
pub fn free_address() -> SocketAddr {
    static TURN: AtomicU32 = AtomicU32::new(0);
    loop {
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.0 + std::process::id().wrapping_mul(61).wrapping_add(turn) % PORTS.1;
        let address = (Ipv4Addr::LOCALHOST, port as u16).into();
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
