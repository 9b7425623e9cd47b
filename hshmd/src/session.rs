//! One connection, from its greeting to its end.
//!
//! A session reads a request only when it has sent the reply to the one before, so a client that
//! sends much or reads little costs the daemon one buffer, and after a while its connection.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hshm_proto::limits::{MAX_HANDSHAKE_BYTES, MAX_REQUEST_BYTES};
use hshm_proto::{
    ErrorCode, ErrorReply, Hello, Refusal, Reply, VersionRange, Welcome, decode_request,
    encode_reply, peek_id,
};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::access::Peer;
use crate::daemon::{Shared, VERSION};
use crate::handlers::{Caller, Passed, forget_session, handle};
use crate::processes::{Connected, TooMany};
use crate::socket::{PacketSocket, Received};
use crate::strangers::MAX_USER_STRANGERS;

/// How long a client may take to send its greeting, or to read a reply.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a connection until it ends.
pub(crate) async fn serve(shared: Arc<Shared>, socket: OwnedFd) {
    let mut socket = match PacketSocket::new(socket) {
        Ok(socket) => socket,
        Err(error) => {
            warn!(%error, "cannot serve a connection");
            return;
        }
    };
    // Before anything else is found out about it, which takes descriptors.
    let stranger = match socket.fd().and_then(|fd| Ok(getsockopt(&fd, sockopt::PeerCredentials)?)) {
        Ok(credentials) => shared.strangers.enter(credentials.uid()),
        Err(error) => {
            debug!(%error, "a client was gone before it could be identified");
            return;
        }
    };
    let Some(stranger) = stranger else {
        let message = format!(
            "{MAX_USER_STRANGERS} connections of this user have not sent a greeting yet, and no more are allowed"
        );
        let busy =
            refusal(ErrorCode::Busy, message, "try again later, and close those connections");
        // Its queue is empty, so there is no waiting.
        let _ = send(&mut socket, &busy.encode()).await;
        return;
    };
    let (mut peer, pidfd) = match socket.fd().and_then(|fd| Peer::of(&fd, shared.rules())) {
        Ok(found) => found,
        Err(error) => {
            debug!(%error, "a client was gone before it could be identified");
            return;
        }
    };
    peer.process = peer.process.map(|process| shared.processes.known_as(process));
    let close = Arc::new(Notify::new());
    let greeted = greet(&shared, &mut socket, peer, &close).await;
    let Some((caller, connected, welcome)) = greeted else { return };
    drop(stranger);
    let session = caller.session;
    if let (Some(process), Some(pidfd)) = (caller.peer.process, pidfd)
        && let Err(error) = shared.watcher.watch(process, Some(&caller.peer), pidfd)
    {
        // The sweep will try again once it holds worker slots.
        warn!(pid = process.pid, %error, "cannot watch a client");
    }
    // As late as may be: while the client wakes up for it, its first request, which it sent right behind the
    // greeting if it is in a hurry, is answered, and it need not go to sleep again.
    if let Err(error) = send(&mut socket, &welcome).await {
        debug!(session, %error, "a client was gone before it was welcomed");
        forget_session(&shared, &caller);
        return;
    }
    let mut stop = shared.stop.subscribe();
    let ended = tokio::select! {
        _ = stop.wait_for(|stopping| *stopping) => Ok("the daemon stops"),
        () = close.notified() => Ok("the process died"),
        ended = converse(&shared, &mut socket, &caller) => ended,
    };
    forget_session(&shared, &caller);
    drop(connected);
    match ended {
        Ok(why) => debug!(session, why, "session ended"),
        Err(error) => debug!(session, %error, "session broken off"),
    }
}

fn refusal(code: ErrorCode, message: String, advice: &str) -> Refusal {
    Refusal {
        code: code.to_u32(),
        versions: VersionRange::SUPPORTED,
        server_version: VERSION.to_owned(),
        message,
        advice: advice.to_owned(),
    }
}

/// Reads the greeting. Returns what to answer to it; none if the session does not come about and the client was
/// told so.
async fn greet(
    shared: &Shared,
    socket: &mut PacketSocket,
    peer: Peer,
    close: &Arc<Notify>,
) -> Option<(Caller, Connected, Vec<u8>)> {
    let mut buffer = [0; MAX_HANDSHAKE_BYTES + 1];
    let received = socket.receive_expected(&mut buffer);
    let received = tokio::time::timeout(PATIENCE, received).await.ok()?.ok()?;
    let hello = match received {
        Received::Packet(len) => Hello::decode(buffer.get(..len).unwrap_or_default())
            .map_err(|error| error.to_string())
            .and_then(|hello| {
                hshm_proto::validate_client_name(&hello.client_name)
                    .map_err(|error| error.to_string())?;
                Ok(hello)
            }),
        Received::TooLong => Err("the greeting is too long".to_owned()),
        Received::Descriptors => Err("the greeting came with file descriptors".to_owned()),
        Received::Closed => return None,
    };
    let accepted = hello
        .map_err(|why| refusal(ErrorCode::Malformed, why, "use a client of hshm to talk to hshmd"))
        .and_then(|hello| {
            let version =
                VersionRange::SUPPORTED.negotiate(hello.versions).map_err(|mismatch| {
                    let advice = if mismatch.ours_is_older() {
                        "upgrade hshmd"
                    } else {
                        "upgrade the client"
                    };
                    let message = format!(
                        "hshmd {VERSION} speaks protocol version {}, the client version {}",
                        mismatch.ours, mismatch.theirs
                    );
                    refusal(ErrorCode::Version, message, advice)
                })?;
            let limits = &shared.registry.limits();
            let session =
                shared.processes.connect(&peer, &hello.client_name, Arc::clone(close), limits);
            let session = session.map_err(|too_many| match too_many {
                TooMany::InAll(limit) => refusal(
                    ErrorCode::Busy,
                    format!("hshmd has {limit} sessions, and no more are allowed"),
                    "try again later, or raise limits.max_sessions in its configuration",
                ),
                TooMany::OfUser(limit) => refusal(
                    ErrorCode::Quota,
                    format!("user {} has {limit} sessions, and may have no more", peer.uid),
                    "close some, or have limits.max_user_sessions raised in the daemon's configuration",
                ),
            })?;
            Ok((hello, version, session))
        });
    match accepted {
        Ok((hello, version, connected)) => {
            let identity = peer.process.unwrap_or_default();
            let session = connected.number;
            let welcome = Welcome {
                version,
                layout_version: hshm_proto::LAYOUT_VERSION,
                identity,
                session,
                server_version: VERSION.to_owned(),
            };
            debug!(
                session,
                uid = peer.uid,
                pid = identity.pid,
                client = hello.client_name,
                "session begins"
            );
            let caller = Caller { session, peer, version, layout_version: hello.layout_version };
            Some((caller, connected, welcome.encode()))
        }
        Err(refusal) => {
            debug!(uid = peer.uid, why = refusal.message, "refused a client");
            let _ = send(socket, &refusal.encode()).await;
            None
        }
    }
}

async fn send(socket: &mut PacketSocket, packet: &[u8]) -> io::Result<()> {
    tokio::time::timeout(PATIENCE, socket.send(packet, None)).await?
}

/// Answers requests until the client has had enough, or sends something that is none.
async fn converse(
    shared: &Arc<Shared>,
    socket: &mut PacketSocket,
    caller: &Caller,
) -> io::Result<&'static str> {
    // One byte more than is allowed, so that a packet that is too long is not mistaken for one that
    // just fits.
    let mut buffer = vec![0; MAX_REQUEST_BYTES + 1];
    loop {
        let malformed = |id, why: &dyn std::fmt::Display| Reply {
            id,
            body: Err(ErrorReply::new(ErrorCode::Malformed, why, "the connection is closed")),
        };
        let complaint = match socket.receive(&mut buffer).await? {
            Received::Closed => return Ok("closed by the client"),
            Received::Packet(len) => {
                let packet = buffer.get(..len).unwrap_or_default();
                match decode_request(packet) {
                    Ok(request) => {
                        respond(shared, socket, caller, request).await?;
                        continue;
                    }
                    Err(error) => malformed(peek_id(packet), &error),
                }
            }
            Received::TooLong => malformed(
                peek_id(&buffer),
                &format_args!("a request is longer than {MAX_REQUEST_BYTES} bytes"),
            ),
            Received::Descriptors => {
                malformed(peek_id(&buffer), &"a request came with file descriptors")
            }
        };
        if let Some(logged) = shared.complaints.admit(caller.peer.uid, Instant::now()) {
            let (session, uid, pid) = (caller.session, caller.peer.uid, pid_of(caller));
            warn!(session, uid, pid, reply = ?complaint.body, "malformed request{logged}");
        }
        send(socket, &encode(&complaint)).await?;
        return Ok("malformed request");
    }
}

async fn respond(
    shared: &Arc<Shared>,
    socket: &mut PacketSocket,
    caller: &Caller,
    request: hshm_proto::Request,
) -> io::Result<()> {
    let (id, verb) = (request.id, request.body.verb());
    let (body, passed) = match handle(shared, caller, request.body).await {
        Ok(outcome) => {
            shared.counted.answered(verb, "done");
            (Ok(outcome.body), outcome.descriptor_of)
        }
        Err(error) => {
            shared.counted.answered(verb, "refused");
            debug!(session = caller.session, verb, %error, "refused a request");
            (Err(error), Passed::Nothing)
        }
    };
    let packet = encode(&Reply { id, body });
    match tokio::time::timeout(PATIENCE, socket.send(&packet, passed.fd())).await {
        Ok(sent) => sent,
        Err(elapsed) => {
            if let Some(logged) = shared.complaints.admit(caller.peer.uid, Instant::now()) {
                let (session, uid, pid) = (caller.session, caller.peer.uid, pid_of(caller));
                warn!(session, uid, pid, "a client does not read its replies{logged}");
            }
            Err(elapsed.into())
        }
    }
}

/// The caller's process, if it can be seen.
fn pid_of(caller: &Caller) -> Option<u32> {
    caller.peer.process.map(|process| process.pid)
}

/// The packet of a reply. Pages are cut so that they fit; should one not, the client is told so.
fn encode(reply: &Reply) -> Vec<u8> {
    encode_reply(reply).unwrap_or_else(|error| {
        tracing::error!(%error, "a reply does not fit a packet");
        let body = Err(crate::error::internal_reply(error));
        encode_reply(&Reply { id: reply.id, body }).unwrap_or_default()
    })
}
