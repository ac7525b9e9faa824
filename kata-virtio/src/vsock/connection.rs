//! One connection as a pure state machine (VIRTIO 1.2 §5.10.6): packets in, the next packet out.
//!
//! Knows neither streams nor queues: the muxer tells it what the host side does and asks it what to
//! send. Both directions close on their own:
//!
//! ```text
//!     host dials                            guest dials
//!         │ REQUEST →                           │ ← REQUEST
//!         ▼             ← RESPONSE              ▼            RESPONSE →
//!     Requested ─────────────────► Open ◄── Accepting ─────────────┘
//!         │ ← RST                   │
//!         │        ┌────────────────┴─────────────────┐
//!         │        │ host → guest                     │ guest → host
//!         │        │  host EOF, all sent: SHUTDOWN(SEND) →    ← SHUTDOWN(SEND): host stream shut for writing
//!         │        │  ← SHUTDOWN(RECEIVE): no more read       host gone: SHUTDOWN(RECEIVE) →, rest dropped
//!         │        └────────────────┬─────────────────┘
//!         ▼                         ▼ both directions closed: RST →
//!       Closed ◄────────────────────┘ ← RST, or a packet that does not fit the state: RST →
//! ```

use super::credit::{Credit, Overrun};
use super::packet::{Header, Op, Shutdown};

/// What a packet from the guest meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Nothing beyond the connection's own books.
    Noted,
    /// The guest accepted our request.
    Accepted,
    /// The payload belongs to the host.
    Payload,
    /// The guest gave up a direction; see [`Connection::guest_sends`] and
    /// [`Connection::guest_receives`].
    Shutdown,
    /// The guest ended (or refused) the connection.
    Reset,
}

/// A packet that does not fit the connection's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// An operation at the wrong time.
    #[error("{op:?} while {phase:?}")]
    Order {
        /// What came.
        op: Op,
        /// When.
        phase: Phase,
    },
    /// Payload after `SHUTDOWN(SEND)`.
    #[error("payload after the guest's shutdown")]
    AfterShutdown,
    /// More payload than was granted.
    #[error(transparent)]
    Overrun(#[from] Overrun),
}

/// How far the handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest has not answered; `sent` tells whether it was asked.
    Requested {
        /// The request is out.
        sent: bool,
    },
    /// The guest asked and waits for our answer.
    Accepting,
    /// Both know.
    Open,
}

/// What to send to the guest next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing now.
    Nothing,
    /// A packet without payload.
    Control(Op, Shutdown),
    /// Up to so many bytes of the host's.
    Data(u32),
    /// Both directions are closed: a reset, and the connection is over.
    Finished,
}

/// The state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    phase: Phase,
    credit: Credit,
    guest: Shutdown,
    told: Shutdown,
    host_ended: bool,
    host_gone: bool,
    update_owed: bool,
    stalled: bool,
}

impl Connection {
    /// The host dials; `buffer_bytes` is what is granted to the guest.
    pub(crate) fn dial(buffer_bytes: u32) -> Self {
        Self::in_phase(Phase::Requested { sent: false }, buffer_bytes)
    }

    /// The guest dialed with this header, and is accepted.
    pub(crate) fn accept(request: &Header, buffer_bytes: u32) -> Self {
        let mut connection = Self::in_phase(Phase::Accepting, buffer_bytes);
        connection.credit.peer(request.buf_alloc, request.fwd_cnt);
        connection
    }

    fn in_phase(phase: Phase, buffer_bytes: u32) -> Self {
        Self {
            phase,
            credit: Credit::new(buffer_bytes),
            guest: Shutdown::empty(),
            told: Shutdown::empty(),
            host_ended: false,
            host_gone: false,
            update_owed: false,
            stalled: false,
        }
    }

    /// Takes a packet of the guest.
    pub(crate) fn receive(&mut self, op: Op, header: &Header) -> Result<Received, Violation> {
        self.credit.peer(header.buf_alloc, header.fwd_cnt);
        if self.credit.available() > 0 {
            self.stalled = false;
        }
        match (self.phase, op) {
            (_, Op::Reset) => Ok(Received::Reset),
            (Phase::Requested { sent: true }, Op::Response) => {
                self.phase = Phase::Open;
                Ok(Received::Accepted)
            }
            (phase, Op::Request | Op::Response) | (phase @ Phase::Requested { .. }, _) => {
                Err(Violation::Order { op, phase })
            }
            (_, Op::ReadWrite) if self.guest.contains(Shutdown::SEND) => Err(Violation::AfterShutdown),
            (_, Op::ReadWrite) => {
                self.credit.received(header.len)?;
                Ok(Received::Payload)
            }
            (_, Op::Shutdown) => {
                self.guest |= Shutdown::from_bits_truncate(header.flags);
                Ok(Received::Shutdown)
            }
            (_, Op::CreditUpdate) => Ok(Received::Noted),
            (_, Op::CreditRequest) => {
                self.update_owed = true;
                Ok(Received::Noted)
            }
        }
    }

    /// What to send, when the host's stream may have something to read (`readable`) or not.
    pub(crate) fn next(&self, readable: bool) -> Next {
        match self.phase {
            Phase::Requested { sent: false } => return Next::Control(Op::Request, Shutdown::empty()),
            Phase::Requested { sent: true } => return Next::Nothing,
            Phase::Accepting => return Next::Control(Op::Response, Shutdown::empty()),
            Phase::Open => {}
        }
        if self.finished() {
            return Next::Finished;
        }
        if readable && self.wants_host_data() {
            match self.credit.available() {
                0 if !self.stalled => return Next::Control(Op::CreditRequest, Shutdown::empty()),
                0 => {}
                credit => return Next::Data(credit),
            }
        }
        let tell = self.closed_to_guest();
        if tell != self.told {
            return Next::Control(Op::Shutdown, tell);
        }
        if self.update_owed || self.credit.update_due() {
            return Next::Control(Op::CreditUpdate, Shutdown::empty());
        }
        Next::Nothing
    }

    /// What [`next`](Self::next) asked for went out; returns (`buf_alloc`, `fwd_cnt`) of its header.
    pub(crate) fn sent(&mut self, op: Op, flags: Shutdown, payload_bytes: u32) -> (u32, u32) {
        match op {
            Op::Request => self.phase = Phase::Requested { sent: true },
            Op::Response => self.phase = Phase::Open,
            Op::CreditRequest => self.stalled = true,
            Op::Shutdown => self.told = flags,
            Op::ReadWrite => self.credit.sent(payload_bytes),
            Op::Reset | Op::CreditUpdate => {}
        }
        self.update_owed = false;
        self.credit.announce()
    }

    /// `bytes` of the guest's payload reached the host, or were dropped because it is gone.
    pub(crate) fn forwarded(&mut self, bytes: u32) {
        self.credit.forwarded(bytes);
    }

    /// The host will send no more, and what it sent has gone out.
    pub(crate) fn host_ended(&mut self) {
        self.host_ended = true;
    }

    /// The host will receive no more.
    pub(crate) fn host_gone(&mut self) {
        self.host_gone = true;
    }

    /// Whether the guest was asked for the connection and has not answered.
    pub(crate) fn asked(&self) -> bool {
        matches!(self.phase, Phase::Requested { .. })
    }

    /// Whether the guest may still send.
    pub(crate) fn guest_sends(&self) -> bool {
        !self.guest.contains(Shutdown::SEND)
    }

    /// Whether the guest still receives.
    pub(crate) fn guest_receives(&self) -> bool {
        !self.guest.contains(Shutdown::RECEIVE)
    }

    fn wants_host_data(&self) -> bool {
        self.guest_receives() && !self.host_ended
    }

    /// The directions that the guest should know to be closed.
    fn closed_to_guest(&self) -> Shutdown {
        let mut tell = Shutdown::empty();
        tell.set(Shutdown::SEND, !self.wants_host_data());
        tell.set(Shutdown::RECEIVE, self.host_gone);
        tell
    }

    fn finished(&self) -> bool {
        self.guest == Shutdown::all() || (!self.guest_sends() && self.told.contains(Shutdown::SEND))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(len: u32, flags: Shutdown) -> Header {
        Header {
            len,
            flags: flags.bits(),
            buf_alloc: 100,
            ..Header::default()
        }
    }

    fn plain() -> Header {
        header(0, Shutdown::empty())
    }

    fn open() -> Connection {
        let mut connection = Connection::accept(&plain(), 64);
        connection.sent(Op::Response, Shutdown::empty(), 0);
        connection
    }

    #[test]
    fn a_dial_asks_once_and_opens_on_the_answer() {
        let mut connection = Connection::dial(64);
        assert_eq!(
            connection.receive(Op::Response, &plain()),
            Err(Violation::Order {
                op: Op::Response,
                phase: Phase::Requested { sent: false }
            }),
            "nobody was asked yet"
        );
        assert_eq!(
            connection.next(true),
            Next::Control(Op::Request, Shutdown::empty())
        );
        connection.sent(Op::Request, Shutdown::empty(), 0);
        assert_eq!(connection.next(true), Next::Nothing);
        assert_eq!(connection.receive(Op::Response, &plain()), Ok(Received::Accepted));
        assert_eq!(connection.next(true), Next::Data(100));
    }

    #[test]
    fn a_refused_dial_is_a_reset() {
        let mut connection = Connection::dial(64);
        connection.sent(Op::Request, Shutdown::empty(), 0);
        assert_eq!(connection.receive(Op::Reset, &plain()), Ok(Received::Reset));
    }

    #[test]
    fn without_credit_it_asks_once_per_stall() {
        let mut connection = open();
        connection.sent(Op::ReadWrite, Shutdown::empty(), 100);
        let ask = Next::Control(Op::CreditRequest, Shutdown::empty());
        assert_eq!(connection.next(true), ask);
        connection.sent(Op::CreditRequest, Shutdown::empty(), 0);
        assert_eq!(connection.next(true), Next::Nothing);
        connection.receive(Op::CreditUpdate, &plain()).unwrap();
        assert_eq!(
            connection.next(true),
            Next::Nothing,
            "still no room: no ping-pong"
        );
        let freed = Header {
            fwd_cnt: 60,
            ..plain()
        };
        connection.receive(Op::CreditUpdate, &freed).unwrap();
        assert_eq!(connection.next(true), Next::Data(60));
        connection.sent(Op::ReadWrite, Shutdown::empty(), 60);
        assert_eq!(connection.next(true), ask, "a new stall");
    }

    #[test]
    fn each_direction_closes_on_its_own() {
        let mut connection = open();
        connection.host_ended();
        assert_eq!(connection.next(true), Next::Control(Op::Shutdown, Shutdown::SEND));
        connection.sent(Op::Shutdown, Shutdown::SEND, 0);
        assert_eq!(connection.next(true), Next::Nothing);
        assert_eq!(
            connection.receive(Op::ReadWrite, &header(10, Shutdown::empty())),
            Ok(Received::Payload),
            "the guest's direction is open"
        );
        let end = header(0, Shutdown::SEND);
        assert_eq!(connection.receive(Op::Shutdown, &end), Ok(Received::Shutdown));
        assert_eq!(connection.next(true), Next::Finished);
    }

    #[test]
    fn the_guest_closing_first_still_receives() {
        let mut connection = open();
        connection
            .receive(Op::Shutdown, &header(0, Shutdown::SEND))
            .unwrap();
        assert_eq!(connection.next(true), Next::Data(100));
        assert_eq!(
            connection.receive(Op::ReadWrite, &header(1, Shutdown::empty())),
            Err(Violation::AfterShutdown)
        );
        connection
            .receive(Op::Shutdown, &header(0, Shutdown::RECEIVE))
            .unwrap();
        assert_eq!(connection.next(true), Next::Finished, "the bits add up");
    }

    #[test]
    fn a_host_that_is_gone_is_told_even_while_its_data_waits() {
        let mut connection = open();
        connection.host_gone();
        assert_eq!(connection.next(true), Next::Data(100));
        assert_eq!(
            connection.next(false),
            Next::Control(Op::Shutdown, Shutdown::RECEIVE)
        );
        connection.sent(Op::Shutdown, Shutdown::RECEIVE, 0);
        connection.host_ended();
        assert_eq!(
            connection.next(false),
            Next::Control(Op::Shutdown, Shutdown::all())
        );
    }

    #[test]
    fn credit_is_answered_and_told_in_time() {
        let mut connection = open();
        connection.receive(Op::CreditRequest, &plain()).unwrap();
        let update = Next::Control(Op::CreditUpdate, Shutdown::empty());
        assert_eq!(connection.next(false), update);
        assert_eq!(connection.sent(Op::CreditUpdate, Shutdown::empty(), 0), (64, 0));
        assert_eq!(connection.next(false), Next::Nothing);
        connection
            .receive(Op::ReadWrite, &header(16, Shutdown::empty()))
            .unwrap();
        connection.forwarded(16);
        assert_eq!(connection.next(false), update);
        assert!(matches!(
            connection.receive(Op::ReadWrite, &header(65, Shutdown::empty())),
            Err(Violation::Overrun(_))
        ));
    }

    fn any_op() -> impl Strategy<Value = Op> {
        (1u16..8).prop_map(|number| Op::from_number(number).unwrap())
    }

    proptest! {
        /// Whatever the guest sends: no panic, credit is never exceeded, and asking what is next comes
        /// to an end (nothing is sent twice for ever).
        #[test]
        fn any_packets_leave_a_state_that_comes_to_rest(
            dialed: bool,
            packets in prop::collection::vec((any_op(), 0u32..80, any::<u32>(), any::<u32>(), any::<u32>()), 0..40),
        ) {
            let mut connection = if dialed { Connection::dial(64) } else { Connection::accept(&plain(), 64) };
            let mut buffered = 0;
            for (op, len, flags, buf_alloc, fwd_cnt) in packets {
                let len = if op == Op::ReadWrite { len } else { 0 };
                let packet = Header { len, flags, buf_alloc, fwd_cnt, ..Header::default() };
                match connection.receive(op, &packet) {
                    Ok(Received::Payload) => buffered += len,
                    Ok(Received::Reset) | Err(_) => break,
                    Ok(_) => {}
                }
                prop_assert!(buffered <= 64);
                if flags & 1 == 0 { connection.forwarded(buffered); buffered = 0; }
                let mut rest = 0;
                loop {
                    match connection.next(true) {
                        Next::Control(op, flags) => { connection.sent(op, flags, 0); }
                        Next::Data(credit) => { connection.sent(Op::ReadWrite, Shutdown::empty(), credit); }
                        Next::Nothing | Next::Finished => break,
                    }
                    rest += 1;
                    prop_assert!(rest < 8);
                }
            }
        }
    }
}
