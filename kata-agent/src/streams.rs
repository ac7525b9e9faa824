//! The connections that become standard streams, by the host's port.
//!
//! The host connects a stream and names its port in a request; either may come first. Owns the waiting.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_agent_proto::{Failed, FailureKind};
use tokio::sync::Notify;

use crate::transport::Stream;

/// How long a request waits for a stream that it names.
const WAIT: Duration = Duration::from_secs(5);

/// Most streams that nobody asked for yet; beyond it the oldest is closed.
const MOST_UNCLAIMED: usize = 256;

/// The streams that arrived and are not claimed yet.
#[derive(Default)]
pub(crate) struct Unclaimed {
    streams: Mutex<VecDeque<(u32, Stream)>>,
    arrived: Notify,
}

impl Unclaimed {
    fn streams(&self) -> MutexGuard<'_, VecDeque<(u32, Stream)>> {
        // Nothing panics while holding it.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream arrived from this port.
    pub(crate) fn add(&self, port: u32, stream: Stream) {
        let mut streams = self.streams();
        if streams.len() == MOST_UNCLAIMED {
            streams.pop_front();
        }
        streams.push_back((port, stream));
        self.arrived.notify_waiters();
    }

    /// Closes the streams of a request that failed.
    pub(crate) fn forget(&self, ports: [u32; 3]) {
        for port in ports {
            self.take(port);
        }
    }

    fn take(&self, port: u32) -> Option<Stream> {
        let mut streams = self.streams();
        let position = streams.iter().position(|(from, _)| *from == port)?;
        streams.remove(position).map(|(_, stream)| stream)
    }

    /// The stream from this port; port 0 is none.
    ///
    /// # Errors
    /// It was not connected in time.
    pub(crate) async fn claim(&self, port: u32) -> Result<Option<Stream>, Failed> {
        if port == 0 {
            return Ok(None);
        }
        let arrival = async {
            loop {
                let arrived = self.arrived.notified();
                if let Some(stream) = self.take(port) {
                    return stream;
                }
                arrived.await;
            }
        };
        let stream = tokio::time::timeout(WAIT, arrival).await;
        stream
            .map(Some)
            .map_err(|_| Failed::new(FailureKind::NoSuchStream, port.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_is_claimed_before_or_after_it_arrives() {
        let unclaimed = Unclaimed::default();
        let (near, _far) = Stream::pair().expect("a pair");
        unclaimed.add(7, near);
        assert!(unclaimed.claim(7).await.expect("there").is_some());
        let (near, _far) = Stream::pair().expect("a pair");
        let (claimed, ()) = tokio::join!(unclaimed.claim(8), async { unclaimed.add(8, near) });
        assert!(claimed.expect("arrived").is_some());
        assert!(unclaimed.claim(0).await.expect("none").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_never_comes_is_a_failure_by_kind() {
        let failed = Unclaimed::default().claim(9).await.expect_err("not there");
        assert_eq!(
            (failed.kind, failed.subject.as_str()),
            (FailureKind::NoSuchStream, "9")
        );
    }

    #[tokio::test]
    async fn the_streams_of_a_failed_request_are_closed() {
        use tokio::io::AsyncReadExt;
        let unclaimed = Unclaimed::default();
        let (near, mut far) = Stream::pair().expect("a pair");
        unclaimed.add(7, near);
        unclaimed.forget([0, 7, 8]);
        assert_eq!(far.read(&mut [0; 1]).await.expect("the end"), 0);
    }

    #[tokio::test]
    async fn streams_that_nobody_claims_are_bounded() {
        let unclaimed = Unclaimed::default();
        for port in 1..=300 {
            unclaimed.add(port, Stream::pair().expect("a pair").0);
        }
        assert_eq!(unclaimed.streams().len(), MOST_UNCLAIMED);
        assert!(unclaimed.take(1).is_none() && unclaimed.take(300).is_some());
    }
}
