//! What a running machine is asked, and who waits for the answer.
//!
//! Owns the order: one question is on its way at a time, so that its answer cannot be another's.
//! It must not know what ends a sandbox: a question that is dropped tells its asker.

use std::collections::VecDeque;

use kata_vmm::control::{Event, Request};
use kata_vmm::machine::MachineInfo;
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind};
use crate::report::Stage;

/// A question with the place for its answer.
#[derive(Debug)]
pub(crate) enum Question {
    /// Hold the machine, or let it go on.
    Pause(bool, oneshot::Sender<Result<(), Error>>),
    /// Its figures.
    Info(oneshot::Sender<Result<MachineInfo, Error>>),
}

impl Question {
    fn request(&self) -> Request {
        match self {
            Self::Pause(paused, _) => Request::Pause { paused: *paused },
            Self::Info(_) => Request::Info,
        }
    }

    /// An asker that stopped waiting needs no answer.
    fn refuse(self, operation: &str, reason: &str) {
        let error = Error::new(
            ErrorKind::Unsupported,
            Stage::Machine,
            format!("{operation} is not possible: {reason}"),
        );
        match self {
            Self::Pause(_, asker) => drop(asker.send(Err(error))),
            Self::Info(asker) => drop(asker.send(Err(error))),
        }
    }
}

/// Those that were not answered, in their order.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    waiting: VecDeque<Question>,
    /// Whether the monitor has been sent the first of them.
    sent: bool,
}

impl Questions {
    /// Notes a question.
    pub(crate) fn ask(&mut self, question: Question) {
        self.waiting.push_back(question);
    }

    /// What to send next.
    pub(crate) fn unsent(&self) -> Option<Request> {
        let first = self.waiting.front().filter(|_| !self.sent);
        first.map(Question::request)
    }

    /// It was sent.
    pub(crate) fn sent(&mut self) {
        self.sent = true;
    }

    /// Hands an answer of the monitor to whoever asked first.
    pub(crate) fn answer(&mut self, answer: Event) {
        if !self.sent {
            tracing::warn!(?answer, "the monitor answers what nobody asked");
            return;
        }
        self.sent = false;
        let Some(question) = self.waiting.pop_front() else {
            return;
        };
        match (question, answer) {
            (Question::Pause(_, asker), Event::Paused { .. }) => drop(asker.send(Ok(()))),
            (Question::Info(asker), Event::Info(info)) => drop(asker.send(Ok(info))),
            (question, Event::Refused { operation, reason }) => question.refuse(&operation, &reason),
            (question, _) => question.refuse("this", "the monitor answers another question"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_to_the_askers_in_order() {
        let mut questions = Questions::default();
        let (first, mut held) = oneshot::channel();
        let (second, mut figures) = oneshot::channel();
        let (third, mut refused) = oneshot::channel();
        questions.ask(Question::Pause(true, first));
        questions.ask(Question::Info(second));
        questions.ask(Question::Pause(false, third));
        for (request, answer) in [
            (Request::Pause { paused: true }, Event::Paused { paused: true }),
            (Request::Info, Event::Info(MachineInfo::default())),
            (
                Request::Pause { paused: false },
                Event::Refused {
                    operation: "holding the machine".to_owned(),
                    reason: "there is none".to_owned(),
                },
            ),
        ] {
            assert_eq!(questions.unsent(), Some(request));
            questions.sent();
            assert_eq!(questions.unsent(), None, "one at a time");
            questions.answer(answer);
        }
        assert_eq!(questions.unsent(), None);
        // Nobody asked.
        questions.answer(Event::Paused { paused: true });
        assert!(held.try_recv().unwrap().is_ok());
        assert_eq!(figures.try_recv().unwrap().unwrap(), MachineInfo::default());
        let error = refused.try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error
                .to_string()
                .ends_with("holding the machine is not possible: there is none")
        );
    }
}
