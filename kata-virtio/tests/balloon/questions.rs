//! Questions for statistics that wait, for whom, and what becomes of them.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use kata_virtio::balloon::{Balloon, Handle, STATISTICS_QUEUE, Statistics};
use kata_virtio::mock::Bench;
use kata_virtio::{COMMON_FEATURES, Device};

use crate::{balloon, entry};

fn ask(handle: &Handle) -> Receiver<Statistics> {
    let (sender, receiver) = channel();
    handle.statistics(move |statistics| sender.send(statistics).unwrap());
    receiver
}

fn is_dropped(question: &Receiver<Statistics>) -> bool {
    question.recv_timeout(Duration::ZERO) == Err(RecvTimeoutError::Disconnected)
}

#[test]
fn a_question_can_be_there_before_the_driver() {
    let (mut device, handle) = Balloon::new().unwrap();
    let question = ask(&handle);
    // What drivers begin with.
    device.reset();
    let mut bench = Bench::new(device).unwrap();
    bench.rings.offer(STATISTICS_QUEUE, &[&entry(5, 3)], &[]).unwrap();
    bench.step().unwrap();
    assert_eq!(question.try_recv().unwrap().total_bytes, Some(3));
}

#[test]
fn a_question_that_nobody_can_answer_is_dropped() {
    let (device, handle) = Balloon::new().unwrap();
    let mut bench = Bench::with_features(device, COMMON_FEATURES).unwrap();
    let unknown = ask(&handle);
    bench.step().unwrap();
    assert!(is_dropped(&unknown));

    let (bench, handle) = balloon();
    let waiting = ask(&handle);
    drop(bench);
    assert!(is_dropped(&waiting) && is_dropped(&ask(&handle)));
}

#[test]
fn only_so_many_wait_even_if_nobody_serves_the_device() {
    let (device, handle) = Balloon::new().unwrap();
    let questions: Vec<_> = (0..70).map(|_| ask(&handle)).collect();
    let dropped: Vec<bool> = questions.iter().map(is_dropped).collect();
    assert!(dropped[..6].iter().all(|dropped| *dropped), "the oldest");
    assert!(dropped[6..].iter().all(|dropped| !dropped));
    drop(device);
    assert!(questions.iter().all(is_dropped));
}

#[test]
fn a_reset_drops_what_the_driver_was_asked() {
    let (mut bench, handle) = balloon();
    let question = ask(&handle);
    bench.step().unwrap();
    assert!(!is_dropped(&question));
    bench.device.reset();
    assert!(is_dropped(&question));
}
