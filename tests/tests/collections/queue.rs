//! The queue between processes.

use std::io::Write as _;
use std::time::{Duration, Instant};

use hshm_memory::collections::{CollectionError, ShmQueue};
use hshm_memory::crash::{CRASH_POINTS, arm};
use hshm_memory::{InitOptions, OnExit};
use hshm_tests::crash::process as child;
use hshm_tests::process::{Worker, wait_until};
use hshm_tests::random::Random;
use hshm_tests::segment::{Kind, TestSegment};
use hshm_tests::traffic::{HEADER_BYTES, Traffic};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn segment(kind: Kind, size: u64) -> TestSegment {
    let options = InitOptions { custom_header_bytes: HEADER_BYTES, ..InitOptions::default() };
    TestSegment::new(kind, size, options)
}

fn sender(segment: &TestSegment, number: u64, count: u64) -> Worker {
    let mut command = segment.command(crate::WORKER, "send");
    Worker::start(command.args([number.to_string(), count.to_string()]))
}

fn receiver(segment: &TestSegment) -> Worker {
    Worker::start(&mut segment.command(crate::WORKER, "receive"))
}

/// Ten million where the code is optimised, a million otherwise, or what `HSHM_QUEUE_MESSAGES` says.
fn messages() -> u64 {
    let asked_for = std::env::var("HSHM_QUEUE_MESSAGES").ok().and_then(|word| word.parse().ok());
    asked_for.unwrap_or(if cfg!(debug_assertions) { 1_000_000 } else { 10_000_000 })
}

/// Two send and two receive. On the way one of each is killed, and another comes in its place.
#[test]
fn four_processes_pass_messages_and_two_of_them_are_killed() {
    let messages = messages();
    let each = messages / 2;
    let segment = segment(Kind::PosixShm, (64 << 20) + 8 * messages);
    let traffic = Traffic::create(&segment.heap, 1024, each);
    let begun = Instant::now();
    let mut senders = [sender(&segment, 0, each), sender(&segment, 1, each)];
    let mut receivers = [receiver(&segment), receiver(&segment)];

    wait_until("a third has been sent", || traffic.sent(0) >= each / 3);
    receivers[0].kill();
    receivers[0] = receiver(&segment);
    wait_until("half has been sent", || traffic.sent(0) >= each / 2);
    senders[0].kill();
    let sent = traffic.sent(0);
    assert!(sent < each, "it was killed when it had sent everything");
    senders[0] = sender(&segment, 2, each - sent);

    senders.into_iter().for_each(Worker::finish);
    traffic.end(2);
    receivers.into_iter().for_each(Worker::finish);
    let time = begun.elapsed();

    let mut received = 0;
    for (sender, count) in [(0, sent), (1, each), (2, each - sent)] {
        let (of_count, one_more) = traffic.received(sender, count);
        // The killed one may have sent one more than it came to note.
        assert!(sender == 0 || !one_more);
        received += of_count;
    }
    let lost = messages - received;
    // The killed receiver takes one along at most, if it was about to enter it into the account.
    assert!(lost <= 1, "{lost} were lost");
    let rate = received as f64 / time.as_secs_f64() / 1e6;
    let summary = format!("{received} of {messages} messages in {time:.1?}: {rate:.1} million/s\n");
    // Past the test harness, which would keep it to itself.
    let _ = std::io::stderr().write_all(summary.as_bytes());
    assert!(traffic.queue.is_empty());
    traffic.destroy();
    let _ = segment.heap.recover_dead();
    segment.assert_empty();
}

/// Whoever sends or receives is killed again and again, at random times.
#[test]
fn a_storm_of_kills_loses_only_what_receivers_had_in_hand() {
    const EACH: u64 = 4_000_000;
    let segment = segment(Kind::Memfd, 64 << 20);
    // A queue that is often full and often empty.
    let traffic = Traffic::create(&segment.heap, 16, EACH);
    let mut random = Random::new(21);
    let mut senders = [sender(&segment, 0, EACH), sender(&segment, 1, EACH)];
    let mut receivers = [receiver(&segment), receiver(&segment)];
    let (mut running, mut next) = ([0, 1], 2);
    let mut totals = Vec::new();
    let mut killed_receivers = 0;
    for _ in 0..60 {
        let magnitude = random.below(14);
        std::thread::sleep(Duration::from_micros(random.below(1 << magnitude)));
        let side = random.index(2);
        if random.below(2) == 0 && next < hshm_tests::traffic::SENDERS {
            senders[side].kill();
            totals.push((running[side], traffic.sent(running[side])));
            senders[side] = sender(&segment, next, EACH);
            running[side] = next;
            next += 1;
        } else {
            receivers[side].kill();
            killed_receivers += 1;
            receivers[side] = receiver(&segment);
        }
    }
    for (mut sender, number) in senders.into_iter().zip(running) {
        sender.kill();
        totals.push((number, traffic.sent(number)));
    }
    traffic.end(2);
    receivers.into_iter().for_each(Worker::finish);
    let (mut sent, mut received) = (0, 0);
    for (number, count) in totals {
        sent += count;
        received += traffic.received(number, count).0;
    }
    let lost = sent - received;
    // How many a busy machine lets through is not the question.
    assert!(sent > 100, "only {sent} messages were sent");
    assert!(lost <= killed_receivers, "{lost} of {sent} were lost, by {killed_receivers} kills");
    assert!(traffic.queue.is_empty());
    traffic.destroy();
    let _ = segment.heap.recover_dead();
    segment.assert_empty();
}

#[test]
fn processes_that_are_stopped_hinder_nobody() {
    let segment = segment(Kind::Memfd, 16 << 20);
    let traffic = Traffic::create(&segment.heap, 8, 1 << 20);
    let mut random = Random::new(22);
    for round in 0..20 {
        let mut workers = [sender(&segment, 2 * round, 1 << 20), receiver(&segment)];
        wait_until("it sends", || traffic.sent(2 * round) > 0);
        std::thread::sleep(Duration::from_micros(random.below(2000)));
        for worker in &workers {
            let pid = Pid::from_raw(worker.pid().cast_signed());
            kill(pid, Signal::SIGSTOP).unwrap();
            let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
            assert_eq!(status, WaitStatus::Stopped(pid, Signal::SIGSTOP));
        }
        // Wherever they stand, messages go through. None of theirs comes after all were taken out.
        while traffic.queue.try_pop().is_ok() {}
        for _ in 0..100 {
            let message = [77, 88, round];
            traffic.queue.push(message, PATIENCE).unwrap();
            assert_eq!(traffic.queue.pop(PATIENCE).unwrap(), message);
        }
        workers.iter_mut().for_each(Worker::kill);
        while traffic.queue.try_pop().is_ok() {}
    }
    traffic.destroy();
    let _ = segment.heap.recover_dead();
    segment.assert_empty();
}

/// One process pushes, one pops, until the one that is told to dies at the point.
#[test]
fn at_each_crash_point_a_message_is_in_the_queue_or_is_not() {
    let mut missed = Vec::new();
    for point in CRASH_POINTS.iter().filter(|point| point.name.starts_with("queue.")) {
        let mut kills = 0;
        for passes in 0..6 {
            for capacity in [1, 4] {
                kills += u32::from(die_pushing_and_popping(point.name, passes, capacity));
            }
        }
        if kills == 0 {
            missed.push(point.name);
        }
    }
    assert!(missed.is_empty(), "no operation comes by {missed:?}");
}

fn die_pushing_and_popping(point: &str, passes: u32, capacity: usize) -> bool {
    const MOST: u64 = 20;
    let options = InitOptions { on_exit: OnExit::Reclaim, ..InitOptions::default() };
    let segment = TestSegment::new(Kind::Memfd, 4 << 20, options);
    let queue = ShmQueue::<[u64; 2]>::create_in(&segment.heap, capacity).unwrap();
    let dying = child::spawn(|| {
        assert!(arm(point, passes));
        // Nobody wakes it but the survivor, and it dies on the way or comes to its end.
        let own = ShmQueue::<u64>::create_in(&segment.heap, 1).unwrap();
        own.pop(Duration::from_micros(1)).unwrap_err();
        own.try_push(1).unwrap();
        for number in 0..MOST {
            queue.push([number, !number], PATIENCE).unwrap();
            if number % 3 == 2 {
                queue.try_pop().ok();
            }
        }
        // SAFETY: nobody else knows of it.
        unsafe { own.destroy() }.unwrap();
    });
    let mut seen = Vec::new();
    let mut status = None;
    let dying = dying.unwrap();
    while status.is_none() {
        seen.extend(queue.try_pop());
        status = Some(waitpid(dying, Some(WaitPidFlag::WNOHANG)).unwrap())
            .filter(|status| *status != WaitStatus::StillAlive);
        std::thread::yield_now();
    }
    let killed = child::was_killed(status.unwrap()).unwrap();
    // All pushers come into use, the dead's too.
    for number in 100..300 {
        seen.extend(queue.try_pop());
        queue.push([number, !number], PATIENCE).unwrap();
    }
    loop {
        match queue.try_pop() {
            Ok(message) => seen.push(message),
            Err(CollectionError::Empty) => break,
            Err(error) => panic!("{point}: {error}"),
        }
    }
    assert!(seen.iter().all(|[number, inverse]| *inverse == !number), "{point}: torn: {seen:?}");
    let numbers: Vec<u64> = seen.iter().map(|message| message[0]).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{point}: twice or out of order: {numbers:?}");
    assert_eq!(numbers.iter().filter(|&&number| number >= 100).count(), 200, "{point}");
    // SAFETY: nobody uses it any more.
    unsafe { queue.destroy() }.unwrap();
    // What the dead had goes with it.
    let _ = segment.heap.recover_dead();
    segment.assert_empty();
    killed
}
