//! The endpoint: HTTP at a path of the file system, or at a port of this machine alone.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::render;
use crate::config::MetricsAddress;
use crate::daemon::Shared;
use crate::error::DaemonError;

/// Connections at once; further ones wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 8;
/// How long a client may take to send its request's head.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may last in all.
const LIFETIME: Duration = Duration::from_secs(30);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where metrics can be asked for.
#[derive(Debug)]
pub(crate) struct Endpoint {
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Path {
        listener: UnixListener,
        /// Dropped with it.
        _file: Placed,
    },
    Port(TcpListener),
}

/// A socket's file, removed with it.
#[derive(Debug)]
struct Placed(PathBuf);

impl Drop for Placed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Endpoint {
    /// Listens at `address`.
    pub(crate) async fn bind(address: &MetricsAddress) -> Result<Self, DaemonError> {
        let socket = match address {
            MetricsAddress::Path(path) => {
                let failed = |error| DaemonError::file("cannot serve metrics at", path, error);
                let listener = bind_path(path).map_err(failed)?;
                Socket::Path { listener, _file: Placed(path.clone()) }
            }
            MetricsAddress::Port(address) => Socket::Port(bind_port(*address).await?),
        };
        Ok(Self { socket })
    }

    /// Answers for as long as the daemon runs.
    pub(crate) async fn run(self, shared: Arc<Shared>) {
        let turns = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
            let shared = Arc::clone(&shared);
            let accepted = match &self.socket {
                Socket::Path { listener, .. } => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        answer(shared, stream).await;
                        drop(turn);
                    });
                }),
                Socket::Port(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        answer(shared, stream).await;
                        drop(turn);
                    });
                }),
            };
            if let Err(error) = accepted {
                warn!(%error, "cannot accept connections for metrics");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// A socket's file that a daemon before left is replaced; anything else is not.
fn bind_path(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::other("something that is no socket stands there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    // For the daemon's user and group: the names of everybody's segments are told here.
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

async fn bind_port(address: SocketAddr) -> Result<TcpListener, DaemonError> {
    TcpListener::bind(address).await.map_err(|error| DaemonError::Setting {
        setting: "metrics.listen",
        why: format!("cannot listen at {address}: {error}"),
    })
}

async fn answer(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(respond(shared, &request).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(LIFETIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection for metrics was broken off"),
        Err(_) => debug!("a connection for metrics took too long"),
    }
}

async fn respond(shared: Arc<Shared>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let refused = |status, why: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(why.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::GET {
        let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    if request.uri().path() != "/metrics" {
        return refused(StatusCode::NOT_FOUND, "what there is stands at /metrics\n");
    }
    let Ok(permit) = Arc::clone(&shared.blocking_permits).acquire_owned().await else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "the daemon stops\n");
    };
    let text = tokio::task::spawn_blocking(move || {
        let text = render(&shared);
        drop(permit);
        text
    });
    match text.await {
        Ok(text) => {
            let mut response = Response::new(Full::new(Bytes::from(text)));
            let kind = HeaderValue::from_static(OPENMETRICS);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(_) => refused(StatusCode::INTERNAL_SERVER_ERROR, "counting failed\n"),
    }
}
