//! Whether the processors may run: one order for all of them, and who has followed it.
//!
//! ```text
//!            hold                      release
//!   Run ───────────► Hold ──────────────────────► Run
//!    │                 │ all have passed: held
//!    └────── stop ─────┴──► Stop (final)
//! ```
//!
//! A processor asks [`pass`](Gate::pass) when it was kicked; whoever gives an order kicks them after it.
//! It must not know threads or KVM.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What the processors are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Hold,
    Stop,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// Processors that have not ended.
    alive: usize,
    /// Those that wait at the gate.
    waiting: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

/// What a processor is told at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// It goes on.
    Run,
    /// It ends.
    Stop,
}

impl Gate {
    /// For so many processors, which may run.
    pub(super) fn new(processors: usize) -> Self {
        Self {
            state: Mutex::new(State {
                order: Order::Run,
                alive: processors,
                waiting: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// On a processor's thread: waits as long as it is to be held. `before` runs once before it waits.
    pub(super) fn pass(&self, mut before: impl FnMut()) -> Passed {
        let mut state = self.lock();
        if state.order == Order::Hold {
            before();
            state.waiting += 1;
            self.changed.notify_all();
            state = self
                .changed
                .wait_while(state, |state| state.order == Order::Hold)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        match state.order {
            Order::Stop => Passed::Stop,
            Order::Run | Order::Hold => Passed::Run,
        }
    }

    /// A processor has ended.
    pub(super) fn left(&self) {
        self.lock().alive -= 1;
        self.changed.notify_all();
    }

    /// Asks all to wait; the caller kicks them, then waits with [`held`](Self::held).
    pub(super) fn hold(&self) {
        self.order(Order::Hold);
    }

    /// Waits until all that have not ended wait at the gate.
    pub(super) fn held(&self) {
        let state = self.lock();
        drop(
            self.changed
                .wait_while(state, |state| {
                    state.order == Order::Hold && state.waiting < state.alive
                })
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Lets them go on.
    pub(super) fn release(&self) {
        self.order(Order::Run);
    }

    /// Ends all; the caller kicks them.
    pub(super) fn stop(&self) {
        self.order(Order::Stop);
    }

    fn order(&self, order: Order) {
        let mut state = self.lock();
        if state.order != Order::Stop {
            state.order = order;
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn a_hold_is_complete_when_all_wait_and_ends_for_all() {
        let gate = Arc::new(Gate::new(3));
        gate.hold();
        let (told, answers) = channel();
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (gate, told) = (Arc::clone(&gate), told.clone());
                thread::spawn(move || {
                    let passed = gate.pass(|| told.send("before").unwrap());
                    told.send("after").unwrap();
                    passed
                })
            })
            .collect();
        // The third has ended: nobody waits for it.
        gate.left();
        gate.held();
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), ["before", "before"]);
        gate.release();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Passed::Run);
        }
        assert_eq!(gate.pass(|| unreachable!()), Passed::Run);
    }

    #[test]
    fn stop_is_final_and_ends_a_hold() {
        let gate = Arc::new(Gate::new(1));
        gate.hold();
        let waiting = thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.pass(|| ())
        });
        gate.held();
        gate.stop();
        gate.release();
        gate.hold();
        assert_eq!(waiting.join().unwrap(), Passed::Stop);
        // Nobody is waited for any more.
        gate.held();
    }
}
