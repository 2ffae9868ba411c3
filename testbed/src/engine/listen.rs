//! The listening socket and its connections, which can all be reset at once.
//!
//! One idea: each connection is one task with a token; cancelling the token closes the socket with
//! a linger of zero, which the peer sees as a TCP reset. The port stays bound by a socket that does
//! not listen for as long as the engine lives, so that a dead engine can come back on its port.
//! A reset is O(connections); the number of connections is bounded by the process' descriptors.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fault::Faults;
use super::http::{self, App};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Streams that one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 10_000;
/// Wait after a failed accept: out of descriptors, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);

/// A handler's hold on the connection that it answers on.
#[derive(Debug, Clone)]
pub(super) struct Connection(CancellationToken);

impl Connection {
    /// Resets the connection. What was written before has been handed to the kernel.
    pub(super) fn reset(&self) {
        self.0.cancel();
    }
}

/// A port that belongs to this process, whether or not anybody listens on it.
#[derive(Debug)]
pub(super) struct Port {
    addr: SocketAddr,
    _bound: Socket,
}

impl Port {
    /// Binds `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// The address is in use or not of this machine.
    pub(super) fn reserve(addr: SocketAddr) -> anyhow::Result<Self> {
        let bound = bind(addr).with_context(|| format!("cannot bind {addr}"))?;
        let local = bound.local_addr()?.as_socket();
        Ok(Self {
            addr: local.context("not an IP socket")?,
            _bound: bound,
        })
    }

    /// The address, with the port that was given.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Starts listening.
    ///
    /// # Errors
    /// Another socket listens on the address.
    pub(super) fn listen(&self) -> anyhow::Result<TcpListener> {
        listen(self.addr).with_context(|| format!("cannot listen on {}", self.addr))
    }
}

fn bind(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(addr)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// The running server: its tasks and the two ways to end it.
#[derive(Debug, Clone, Default)]
pub(super) struct Server {
    /// Ends when its last connection has ended.
    pub(super) tasks: TaskTracker,
    /// Cancelled: no new connection, the open ones end with their request.
    pub(super) stop: CancellationToken,
    /// Cancelled: no new connection, the open ones are reset.
    pub(super) kill: CancellationToken,
}

impl Server {
    /// Accepts until stopped or killed. While the faults refuse, nothing listens.
    pub(super) async fn serve(
        self,
        app: Arc<App>,
        faults: Arc<Faults>,
        port: Arc<Port>,
        mut first: Option<TcpListener>,
    ) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.kill.cancelled() => return,
                () = faults.until_open() => {}
            }
            let listener = match first.take() {
                Some(listener) => listener,
                None => match port.listen() {
                    Ok(listener) => listener,
                    Err(error) => {
                        eprintln!("engine: {error:#}");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                        continue;
                    }
                },
            };
            let open = self.kill.child_token();
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.kill.cancelled() => return,
                () = faults.until_refusing() => open.cancel(),
                () = self.accept(&app, &listener, &open) => {}
            }
        }
    }

    async fn accept(&self, app: &Arc<App>, listener: &TcpListener, open: &CancellationToken) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = Connection(open.child_token());
                    self.tasks.spawn(drive(
                        stream,
                        Arc::clone(app),
                        connection,
                        self.stop.clone(),
                    ));
                }
                Err(error) => {
                    eprintln!("engine: accept: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
}

/// Serves one connection, HTTP/1.1 or HTTP/2 by its first bytes.
async fn drive(stream: TcpStream, app: Arc<App>, connection: Connection, stop: CancellationToken) {
    // Both can only fail on a connection that is already gone.
    let _ = stream.set_nodelay(true);
    let Ok(socket) = SockRef::from(&stream).try_clone() else {
        return;
    };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(MAX_STREAMS);
    let handle = connection.clone();
    let service = service_fn(move |request| {
        let answer = http::handle(Arc::clone(&app), handle.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            // An error is the client's going away, or a fault that was asked for.
            _ = serving.as_mut() => return,
            () = connection.0.cancelled() => {
                let _ = socket.set_linger(Some(Duration::ZERO));
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}
