//! A Kubernetes API server on loopback that lists and watches EndpointSlices as a test tells it.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Bytes of a watch; an error cuts the connection.
type Piece = Result<Frame<Bytes>, std::io::Error>;

#[derive(Default)]
struct State {
    /// What the next lists are answered with.
    list: Vec<Value>,
    /// Statuses and bodies that go before anything else.
    refusals: Vec<(u16, String)>,
    /// Each request's path and query, with the token.
    requests: Vec<(String, String)>,
    watchers: Vec<UnboundedSender<Piece>>,
}

/// The server; it ends with its test's runtime.
#[derive(Clone)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

/// A slice with one port `http` 8000.
pub fn slice(name: &str, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "ml", "resourceVersion": "7"},
        "endpoints": endpoints,
        "ports": [{"name": "metrics", "port": 9000, "protocol": "TCP"}, {"name": "http", "port": 8000, "protocol": "TCP"}],
    })
}

pub fn ready(ip: &str) -> Value {
    endpoint(ip, &json!({"ready": true, "serving": true, "terminating": false}))
}

pub fn endpoint(ip: &str, conditions: &Value) -> Value {
    json!({"addresses": [ip], "conditions": conditions})
}

impl ApiServer {
    pub async fn start(slices: Vec<Value>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let state = State { list: slices, ..State::default() };
        let server = Self { state: Arc::new(Mutex::new(state)), address: listener.local_addr().unwrap() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Under paused time a piece held back by Nagle would come after every deadline.
                stream.set_nodelay(true).unwrap();
                let server = serving.clone();
                let service =
                    service_fn(move |request| std::future::ready(Ok::<_, Infallible>(server.answer(&request))));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn list(&self, slices: Vec<Value>) {
        self.state.lock().unwrap().list = slices;
    }

    /// Answers the next request so.
    pub fn refuse(&self, status: u16, body: &str) {
        self.state.lock().unwrap().refusals.push((status, body.to_owned()));
    }

    pub fn requests(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().requests.clone()
    }

    /// How many watches were opened.
    pub fn watches(&self) -> usize {
        self.state.lock().unwrap().watchers.len()
    }

    pub fn send(&self, bytes: impl Into<Bytes>) {
        let state = self.state.lock().unwrap();
        state.watchers.last().unwrap().send(Ok(Frame::data(bytes.into()))).unwrap();
    }

    pub fn event(&self, kind: &str, object: &Value) {
        self.send(format!("{}\n", json!({"type": kind, "object": object})));
    }

    /// Ends the watch, by breaking it off or as it should.
    pub fn end(&self, is_cut: bool) {
        let mut state = self.state.lock().unwrap();
        let watcher = state.watchers.last_mut().unwrap();
        if is_cut {
            watcher.send(Err(std::io::Error::other("cut"))).unwrap();
        }
        *watcher = unbounded_channel().0;
    }

    fn answer(&self, request: &Request<hyper::body::Incoming>) -> Response<BoxBody<Bytes, std::io::Error>> {
        let mut state = self.state.lock().unwrap();
        let token = request.headers().get("authorization").map_or("", |t| t.to_str().unwrap());
        let asked = request.uri().path_and_query().unwrap().as_str().to_owned();
        state.requests.push((asked.clone(), token.to_owned()));
        let whole = |body: String| Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
        if !state.refusals.is_empty() {
            let (status, body) = state.refusals.remove(0);
            return Response::builder().status(status).body(whole(body)).unwrap();
        }
        if asked.contains("watch=true") {
            let (send, mut receive) = unbounded_channel();
            state.watchers.push(send);
            let pieces = futures_util::stream::poll_fn(move |context| receive.poll_recv(context));
            return Response::new(StreamBody::new(pieces).boxed());
        }
        let list = json!({
            "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"resourceVersion": "5"}, "items": state.list,
        });
        Response::new(whole(list.to_string()))
    }
}
