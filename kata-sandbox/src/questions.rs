//! What a running machine is asked, and who waits for the answer.
//!
//! Owns the order: one question is on its way at a time, so that its answer cannot be another's.
//! It must not know what ends a sandbox: a question that is dropped tells its asker.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
    /// Show a file on the shelf, which is closed here once the monitor has it.
    AddExtent(Option<OwnedFd>, oneshot::Sender<Result<Extent, Error>>),
    /// Show it no more. Nobody waits for that.
    RemoveExtent(u64),
}

/// A file's place on the shelf of a machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where it begins.
    pub(crate) offset: u64,
    /// How many.
    pub(crate) bytes: u64,
}

impl Question {
    fn request(&self) -> Request {
        match self {
            Self::Pause(paused, _) => Request::Pause { paused: *paused },
            Self::Info(_) => Request::Info,
            Self::AddExtent(..) => Request::AddExtent,
            Self::RemoveExtent(offset) => Request::RemoveExtent { offset: *offset },
        }
    }

    /// What goes beside the request.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::AddExtent(file, _) => file.as_ref().map(AsFd::as_fd),
            _ => None,
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
            Self::AddExtent(_, asker) => drop(asker.send(Err(error))),
            Self::RemoveExtent(offset) => tracing::warn!(offset, %error, "a layer stays on the shelf"),
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

    /// What to send next, and beside it.
    pub(crate) fn unsent(&self) -> Option<(Request, Option<BorrowedFd<'_>>)> {
        let first = self.waiting.front().filter(|_| !self.sent)?;
        Some((first.request(), first.file()))
    }

    /// It was sent.
    pub(crate) fn sent(&mut self) {
        self.sent = true;
        if let Some(Question::AddExtent(file, _)) = self.waiting.front_mut() {
            *file = None;
        }
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
            (Question::AddExtent(_, asker), Event::ExtentAdded { offset, bytes }) => {
                // Whoever stopped waiting will not take it away.
                if asker.send(Ok(Extent { offset, bytes })).is_err() {
                    self.ask(Question::RemoveExtent(offset));
                }
            }
            (Question::RemoveExtent(_), Event::ExtentRemoved { .. }) => {}
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
            assert_eq!(questions.unsent().unwrap().0, request);
            questions.sent();
            assert!(questions.unsent().is_none(), "one at a time");
            questions.answer(answer);
        }
        assert!(questions.unsent().is_none());
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

    #[test]
    fn a_file_is_beside_its_question_and_closed_when_it_was_sent() {
        let mut questions = Questions::default();
        let (reader, writer) = std::io::pipe().unwrap();
        let (asker, mut added) = oneshot::channel();
        questions.ask(Question::AddExtent(Some(writer.into()), asker));
        let (request, file) = questions.unsent().unwrap();
        assert_eq!((request, file.is_some()), (Request::AddExtent, true));
        questions.sent();
        let end = std::io::read_to_string(reader).unwrap();
        assert_eq!(end, "", "the last writer is gone");
        let bytes = 4096;
        questions.answer(Event::ExtentAdded { offset: 512, bytes });
        assert_eq!(added.try_recv().unwrap().unwrap(), Extent { offset: 512, bytes });
        // An asker that is gone has nothing left on the shelf.
        let (asker, added) = oneshot::channel();
        drop(added);
        questions.ask(Question::AddExtent(None, asker));
        questions.sent();
        questions.answer(Event::ExtentAdded { offset: 1024, bytes });
        let (request, file) = questions.unsent().unwrap();
        assert_eq!(
            (request, file.is_none()),
            (Request::RemoveExtent { offset: 1024 }, true)
        );
        questions.sent();
        questions.answer(Event::ExtentRemoved { offset: 1024 });
        assert!(questions.unsent().is_none());
    }
}
