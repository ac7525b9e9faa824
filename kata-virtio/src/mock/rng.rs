//! An entropy source with a hostile driver, as told by a string of bytes: what the fuzzer runs, and the tests
//! on its corpus.

use super::Bench;
use super::script::{Script, figure, misbehave};
use crate::rng::{REQUEST_QUEUE, Rng};

/// The most that a turn may give: its share, and the last request beyond it.
const TURN_BYTES: u64 = (256 << 10) + (64 << 10);

/// The most requests that a turn may answer: each counts as a page at least.
const TURN_REQUESTS: u64 = 64;

/// Runs the script `data` against an entropy source, and checks what must hold whatever a driver does: no
/// panic, turns that end, and a driver that keeps the rules is served after a reset.
///
/// # Panics
/// When it does not hold.
pub fn run_script(data: &[u8]) {
    let Some(mut bench) = Rng::new().and_then(Bench::new).ok() else {
        return;
    };
    let mut script = Script(data);
    // Whether the driver has broken no rule since its last reset.
    let mut tame = true;
    while let Some(act) = script.byte() {
        let act = act % 8;
        if act < 5 {
            keep_rules(&mut bench, act, tame, &mut script);
        } else {
            tame = misbehave(&mut bench, &mut script);
        }
        step(&mut bench);
    }
    bench.reset();
    let entropy = bench.request(REQUEST_QUEUE, &[], &[16]);
    assert!(
        entropy.is_ok_and(|bytes| bytes.len() == 16),
        "a reset heals everything"
    );
}

/// Requests as a driver makes them, and taking back what was answered.
fn keep_rules(bench: &mut Bench<Rng>, act: u8, tame: bool, script: &mut Script<'_>) {
    let rings = &mut bench.rings;
    match act {
        0 | 1 => drop(rings.offer(REQUEST_QUEUE, &[], &[u32::from(script.short()) * 8])),
        2 => {
            let readable = script.take(9);
            drop(rings.offer(REQUEST_QUEUE, &[readable], &[u32::from(script.small()), 7]));
        }
        3 => {
            let sizes = [u32::from(script.short()), u32::from(script.small())];
            drop(rings.offer_indirect(REQUEST_QUEUE, &[], &sizes));
        }
        _ if tame => drop(rings.used(REQUEST_QUEUE)),
        _ => {}
    }
}

/// One turn of the device, which is not for ever.
fn step(bench: &mut Bench<Rng>) {
    let said = |bench: &_| ["bytes_given", "requests"].map(|name| figure(bench, name));
    let [bytes, requests] = said(bench);
    let stepped = bench.step();
    assert!(stepped.is_ok(), "{stepped:?}");
    let [bytes_now, requests_now] = said(bench);
    assert!(
        bytes_now - bytes <= TURN_BYTES,
        "{} bytes in a turn",
        bytes_now - bytes
    );
    assert!(requests_now - requests <= TURN_REQUESTS);
}
