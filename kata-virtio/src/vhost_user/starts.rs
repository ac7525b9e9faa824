//! Which queues run, and whether it is still the same driver that runs them.
//!
//! Vhost-user has no word for a reset of the device that every frontend says. A driver that is paused
//! finds its queues where it left them; a new one begins elsewhere, or chooses other features. Pure.
//!
//! ```text
//!   each queue:   Stopped ── started, rings in guest memory ──► Active ──┐
//!                    ▲    └─ rings elsewhere ──► Invalid ────────────────┤
//!                    └──────────────── stopped ──────────────────────────┘
//! ```
//!
//! Queues start one after the other, some of them late or never. The device is reset at the first sign of
//! a new driver, unless it has worked for that driver already: then the sign only comes late.

/// How far the frontend has set a queue up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Stopped,
    Active,
    /// It runs on rings outside of guest memory: nothing is done until it is stopped.
    Invalid,
}

/// What a queue's start means for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing has run since the device was made or reset.
    First,
    /// Of the driver that is known.
    Further,
    /// Of another driver: what the last one said is to be forgotten.
    NewDriver,
}

#[derive(Debug, Clone, Copy)]
struct Queue {
    state: State,
    /// Next available index when it last ran.
    position: Option<u16>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Starts {
    queues: Vec<Queue>,
    /// What the device was told when it was activated.
    features: Option<u64>,
    /// A queue has moved since all were stopped.
    worked: bool,
    /// The driver broke a queue: whoever starts the next one has to begin anew.
    broken: bool,
}

impl Starts {
    /// All queues are stopped, and no driver is known.
    pub(super) fn new(queues: usize) -> Self {
        let queue = Queue {
            state: State::Stopped,
            position: None,
        };
        Self {
            queues: vec![queue; queues],
            features: None,
            worked: false,
            broken: false,
        }
    }

    pub(super) fn is_stopped(&self, index: usize) -> bool {
        self.state(index) == Some(State::Stopped)
    }

    pub(super) fn is_active(&self, index: usize) -> bool {
        self.state(index) == Some(State::Active)
    }

    pub(super) fn any_active(&self) -> bool {
        self.queues.iter().any(|queue| queue.state == State::Active)
    }

    /// A queue starts at this position, on rings that are valid or not, with the driver's features.
    pub(super) fn start(&mut self, index: usize, valid: bool, position: u16, features: u64) -> Start {
        let Some(queue) = self.queues.get_mut(index) else {
            return Start::Further;
        };
        queue.state = if valid { State::Active } else { State::Invalid };
        let moved = queue
            .position
            .replace(position)
            .is_some_and(|last| last != position);
        let Some(known) = self.features else {
            self.features = Some(features);
            return Start::First;
        };
        let sign = (moved || known != features) && !self.worked;
        if !std::mem::take(&mut self.broken) && !sign {
            return Start::Further;
        }
        self.features = Some(features);
        for other in self
            .queues
            .iter_mut()
            .filter(|queue| queue.state == State::Stopped)
        {
            other.position = None;
        }
        Start::NewDriver
    }

    /// A queue that runs was worked on, and is now at this position.
    pub(super) fn worked(&mut self, index: usize, position: u16) {
        if let Some(queue) = self.queues.get_mut(index)
            && queue.state == State::Active
        {
            self.worked |= queue.position != Some(position);
            queue.position = Some(position);
        }
    }

    /// The driver broke a queue, and is to reset the device.
    pub(super) fn broke(&mut self) {
        self.broken = true;
    }

    /// A queue is stopped; its position is kept.
    pub(super) fn stop(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.state = State::Stopped;
        }
        if self.queues.iter().all(|queue| queue.state == State::Stopped) {
            self.worked = false;
        }
    }

    fn state(&self, index: usize) -> Option<State> {
        self.queues.get(index).map(|queue| queue.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two queues that have run to positions 5 and 7 and were stopped.
    fn stopped() -> Starts {
        let mut starts = Starts::new(3);
        assert_eq!(starts.start(0, true, 0, 1), Start::First);
        assert_eq!(starts.start(1, true, 0, 1), Start::Further);
        starts.worked(0, 5);
        starts.worked(1, 7);
        starts.stop(0);
        assert!(starts.any_active() && !starts.is_active(0));
        starts.stop(1);
        assert!(!starts.any_active());
        starts
    }

    #[test]
    fn a_pause_is_no_reset() {
        let mut starts = stopped();
        assert_eq!(starts.start(1, true, 7, 1), Start::Further);
        assert_eq!(starts.start(0, true, 5, 1), Start::Further);
        assert_eq!(starts.start(2, true, 3, 1), Start::Further, "it never ran");
    }

    #[test]
    fn other_positions_or_features_are_another_driver() {
        let mut starts = stopped();
        assert_eq!(starts.start(0, true, 0, 1), Start::NewDriver);
        assert_eq!(starts.start(1, true, 0, 1), Start::Further, "one reset is enough");
        assert_eq!(stopped().start(0, true, 5, 3), Start::NewDriver);
    }

    #[test]
    fn a_late_sign_counts_as_long_as_nothing_was_done() {
        let mut starts = stopped();
        assert_eq!(starts.start(0, true, 5, 1), Start::Further);
        starts.worked(0, 5);
        assert_eq!(starts.start(1, true, 0, 1), Start::NewDriver);
        let mut starts = stopped();
        assert_eq!(starts.start(0, true, 5, 1), Start::Further);
        starts.worked(0, 6);
        assert_eq!(
            starts.start(1, true, 0, 1),
            Start::Further,
            "requests are in flight"
        );
    }

    #[test]
    fn one_queue_restarts_alone() {
        let mut starts = stopped();
        starts.start(0, true, 5, 1);
        starts.start(1, true, 7, 1);
        starts.worked(1, 9);
        starts.stop(0);
        assert_eq!(starts.start(0, true, 0, 1), Start::Further, "the other one runs");
    }

    #[test]
    fn a_driver_that_broke_a_queue_begins_anew_wherever_it_stands() {
        let mut starts = Starts::new(1);
        starts.start(0, true, 0, 1);
        starts.broke();
        starts.stop(0);
        assert_eq!(starts.start(0, true, 0, 1), Start::NewDriver);
        starts.stop(0);
        assert_eq!(starts.start(0, true, 0, 1), Start::Further);
    }

    #[test]
    fn rings_outside_of_memory_are_left_alone() {
        let mut starts = Starts::new(1);
        assert_eq!(starts.start(0, false, 0, 1), Start::First);
        assert!(!starts.is_active(0) && !starts.is_stopped(0));
        starts.stop(0);
        assert!(starts.is_stopped(0));
    }
}
