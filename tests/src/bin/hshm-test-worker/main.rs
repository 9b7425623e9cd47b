//! The other process of the scenarios: `hshm-test-worker ROLE SEGMENT [ARGUMENT...]`.

mod exchange;
mod fork;
mod full;
mod scribbled;
mod traffic;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use hshm_client::{Client, Segment};
use hshm_memory::{AllocError, OffsetPointer, RecoveryReport, ThreadLocalAllocator};
use hshm_tests::cells::Cells;
use hshm_tests::random::Random;
use hshm_tests::ring::{RING_BYTES, shared_word};
use hshm_tests::segment::attach_as_told;
use hshm_tests::stock::Stock;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    // A test that dies takes its workers with it.
    let _ = set_pdeathsig(Signal::SIGKILL);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["exchange", name, side, blocks] => {
            exchange::run(&attach_as_told(name), number(side), number(blocks), |_| ());
        }
        ["churn", name, seed] => churn(&attach_as_told(name), number(seed)),
        ["cells", name, seed] => change_cells(&attach_as_told(name), number(seed)),
        ["fork", name] => fork::two_slots(&attach_as_told(name)),
        ["fork-while-threads-allocate", name] => fork::while_threads(&attach_as_told(name)),
        ["full", name] => full::run(name),
        ["limited", name] => full::limited(&attach_as_told(name)),
        ["exchange-as-client", name, socket, side] => {
            exchange_as_client(name, socket, number(side))
        }
        ["exchange-apart", name, socket, side] => exchange_apart(name, socket, number(side)),
        ["exchange-and-tell", name, socket, side] => exchange_and_tell(name, socket, number(side)),
        ["call-as-client", name, socket] => call_as_client(name, socket),
        ["send", name, sender, count] => {
            traffic::send(&attach_as_told(name), number(sender), number(count));
        }
        ["receive", name] => traffic::receive(&attach_as_told(name)),
        ["stock", name, seat] => Stock::attach(&attach_as_told(name)).work(number(seat)),
        ["scribbled", name, seed] => scribbled::run(&attach_as_told(name), number(seed)),
        _ => {
            say("unknown role");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn number(word: &str) -> u64 {
    word.parse().expect("a number")
}

/// Tells the test something.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").expect("the test listens");
    out.flush().expect("the test listens");
}

/// Attaches what a daemon hands out.
fn attach_by_daemon(name: &str, socket: &str) -> Segment {
    let client = Client::builder().socket(socket).connect().expect("a daemon");
    client.attach(name).expect("the segment")
}

/// Exchanges blocks with another until it is killed. How many it has received stands in the custom
/// header, behind both rings.
fn exchange_as_client(name: &str, socket: &str, side: u64) {
    let segment = attach_by_daemon(name, socket);
    let place = segment.custom_header().0.offset_bytes() + 2 * RING_BYTES + side * 8;
    let count = shared_word(&segment, OffsetPointer::new(place));
    say("at work");
    exchange::run(&segment, side, u64::MAX, |received| count.store(received, Ordering::Relaxed));
}

/// The same where the other users of the segment cannot be seen, and pass for dead: this process does
/// nothing to them.
fn exchange_apart(name: &str, socket: &str, side: u64) {
    let segment = attach_by_daemon(name, socket);
    assert_eq!(segment.recover_dead(), RecoveryReport::default());
    let refused = segment.repair();
    assert!(matches!(refused, Err(AllocError::Identity(_))), "{refused:?}");
    drop(segment);
    exchange_as_client(name, socket, side);
}

/// Exchanges blocks with another until it is killed, and says now and then how many it has received.
fn exchange_and_tell(name: &str, socket: &str, side: u64) {
    let mut said = 0;
    exchange::run(&attach_by_daemon(name, socket), side, u64::MAX, |received| {
        if received - said >= 10_000 {
            say(&received.to_string());
            said = received;
        }
    });
}

/// Puts some blocks there and takes them back.
fn call_as_client(name: &str, socket: &str) {
    let segment = attach_by_daemon(name, socket);
    for text in ["to be", "or not", "to be"] {
        let block = segment.put_bytes(text.as_bytes()).expect("there is room");
        let mut bytes = vec![0; text.len()];
        segment.read_bytes(block, &mut bytes).expect("it is in the segment");
        assert_eq!(bytes, text.as_bytes());
        // SAFETY: the block is ours.
        unsafe { segment.free(block) }.expect("it is allocated");
    }
    segment.detach().expect("the daemon");
}

/// Allocates and frees blocks of all sizes until it is killed.
fn churn(heap: &ThreadLocalAllocator, seed: u64) {
    let mut random = Random::new(seed);
    let mut blocks = Vec::new();
    let mut has_said = false;
    loop {
        if blocks.len() < 500 && random.below(2) == 0 {
            if let Ok(block) = heap.allocate(random.size(1, 200_000)) {
                blocks.push(block);
                if !has_said {
                    say("at work");
                    has_said = true;
                }
            }
        } else if !blocks.is_empty() {
            let block = blocks.swap_remove(random.index(blocks.len()));
            // SAFETY: the block is ours.
            unsafe { heap.free(block) }.expect("the block is allocated");
        }
    }
}

/// Fills and empties cells until it is killed.
fn change_cells(heap: &ThreadLocalAllocator, seed: u64) {
    let mut random = Random::new(seed);
    let cells = Cells::of(heap);
    cells.change_one(&mut random, 100_000);
    say("at work");
    loop {
        cells.change_one(&mut random, 100_000);
    }
}
