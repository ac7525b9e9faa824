//! The agent at work: one event loop over connections, children and the sandbox's end.
//!
//! Owns which port leads where, and the hello. Must not know how the guest was set up.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use kata_agent_proto::{Hello, port, write_hello};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::guest::boot_time_ns;
use crate::sandbox::Sandbox;
use crate::server;
use crate::transport::{Arrival, Incoming, Stream, Transport};

/// How long the host may take to hang up after the answer to its last request.
const GOODBYE: Duration = Duration::from_millis(500);

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// Children cannot be heard of.
    #[error("cannot listen to child signals")]
    Signals(#[source] io::Error),
    /// There is no way for connections to come in.
    #[error("cannot listen for the host")]
    Listen(#[source] io::Error),
    /// The API cannot be served.
    #[error("cannot serve the agent API")]
    Api(#[source] io::Error),
    /// The host does not take the hello.
    #[error("cannot say hello to the host on port {}", port::HELLO)]
    Hello(#[source] io::Error),
    /// No connections come in any more.
    #[error("cannot accept connections")]
    Accept(#[source] io::Error),
}

/// Serves until the sandbox is destroyed or the host is gone.
pub(crate) async fn serve(
    transport: &Transport,
    sandbox: Arc<Sandbox>,
    mut hello: Hello,
) -> Result<(), AgentError> {
    let mut children = signal(SignalKind::child()).map_err(AgentError::Signals)?;
    let (mut api, _server) = Api::start(&sandbox).await.map_err(AgentError::Api)?;
    hello.ready_ns = boot_time_ns();
    let mut lifeline = transport.dial(port::HELLO).await.map_err(AgentError::Hello)?;
    if let Some(lifeline) = &mut lifeline {
        write_hello(lifeline, hello).await.map_err(AgentError::Hello)?;
    }
    tokio::select! {
        ended = connections(transport, &sandbox, &mut api) => ended.map_err(AgentError::Accept),
        () = reap(&mut children, &sandbox) => Ok(()),
        () = sandbox.destroyed.notified() => {
            // The answer is on its way; a host that has it hangs up.
            let _ = tokio::time::timeout(GOODBYE, api.hung_up()).await;
            Ok(())
        }
    }
}

async fn connections(transport: &Transport, sandbox: &Sandbox, api: &mut Api) -> io::Result<()> {
    while let Some(arrival) = transport.accept().await? {
        let Incoming {
            guest_port,
            host_port,
            stream,
        } = match arrival {
            Arrival::Connection(incoming) => incoming,
            Arrival::Disk { serial, file } => {
                sandbox.disks().change(serial, file);
                continue;
            }
        };
        match guest_port {
            port::AGENT => api.serve(stream),
            port::STREAM => sandbox.unclaimed.add(host_port, stream),
            // Nobody listens there: the connection closes.
            _ => {}
        }
    }
    Ok(())
}

async fn reap(children: &mut Signal, sandbox: &Sandbox) {
    while children.recv().await.is_some() {
        sandbox.reaper.sweep();
    }
}

/// The server of the API, fed with connections.
struct Api {
    connections: mpsc::UnboundedSender<Connection>,
    open: watch::Sender<usize>,
}

impl Api {
    async fn start(sandbox: &Arc<Sandbox>) -> io::Result<(Self, Server)> {
        let (connections, accepted) = mpsc::unbounded_channel();
        let mut server = Server::new()
            .add_listener(Listener::new(Accepted(accepted)))
            .register_service(server::services(sandbox));
        server.start().await.map_err(io::Error::other)?;
        Ok((
            Api {
                connections,
                open: watch::channel(0).0,
            },
            server,
        ))
    }

    fn serve(&self, stream: Stream) {
        self.open.send_modify(|open| *open += 1);
        // The server lives as long as the agent.
        let _ = self.connections.send(Connection {
            stream,
            open: self.open.clone(),
        });
    }

    async fn hung_up(&self) {
        // The sender is here, so waiting cannot fail.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }
}

/// A connection that is counted.
struct Connection {
    stream: Stream,
    open: watch::Sender<usize>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.send_modify(|open| *open -= 1);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The connections as ttrpc wants them.
struct Accepted(mpsc::UnboundedReceiver<Connection>);

impl futures_core::Stream for Accepted {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}
