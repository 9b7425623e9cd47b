use std::ptr;
use std::sync::Barrier;
use std::time::Instant;

use super::*;

#[test]
fn a_kind_is_read_as_it_is_written() {
    for kind in ThreadModelKind::ALL {
        assert_eq!(kind.to_string().parse::<ThreadModelKind>().unwrap(), kind);
    }
    let said = "fibers".parse::<ThreadModelKind>().unwrap_err().to_string();
    assert!(said.contains("\"fibers\"") && said.contains("argobots"), "{said}");
}

#[test]
fn threads_that_live_at_once_have_different_numbers() {
    let all = Barrier::new(8);
    let mut numbers: Vec<_> = std::thread::scope(|scope| {
        let ask = || {
            let number = thread_model().get_tid();
            all.wait();
            assert_eq!(number, thread_model().get_tid());
            number
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 8);
    assert!(!numbers.contains(&ThreadId::NULL));
}

#[test]
fn each_thread_keeps_a_pointer_of_its_own() {
    let model = thread_model();
    let mine = [0_u8; 9];
    let at = |place: usize| mine.as_ptr().wrapping_add(place).cast_mut();
    let key = model.create_tls(at(0)).unwrap();
    let all = Barrier::new(8);
    std::thread::scope(|scope| {
        for place in 1..=8 {
            let (key, all) = (&key, &all);
            // As a number, since a pointer is not to be sent.
            let address = at(place).expose_provenance();
            scope.spawn(move || {
                assert!(model.get_tls(key).is_null());
                model.set_tls(key, ptr::with_exposed_provenance_mut(address)).unwrap();
                all.wait();
                assert_eq!(model.get_tls(key).addr(), address);
            });
        }
    });
    assert_eq!(model.get_tls(&key), at(0));
    model.set_tls(&key, ptr::null_mut()).unwrap();
    assert!(model.get_tls(&key).is_null());
}

unsafe extern "C" fn count_down(counter: *mut AtomicCounter) {
    // SAFETY: [owned] the tests set counters that outlive their threads, and the key.
    unsafe { &*counter }.fetch_add(1, crate::sync::Ordering::Relaxed);
}

type AtomicCounter = crate::sync::AtomicU32;

#[test]
fn the_destructor_runs_for_each_thread_that_set_a_pointer() {
    let model = thread_model();
    let ended = AtomicCounter::new(0);
    // SAFETY: [owned] the counter lives until the threads have ended and the key is dropped.
    let key = unsafe { model.create_tls_with_destructor(ptr::null_mut(), count_down) }.unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|thread| {
                let (key, ended) = (&key, &ended);
                scope.spawn(move || {
                    if thread % 2 == 0 {
                        model.set_tls(key, ptr::from_ref(ended).cast_mut()).unwrap();
                    }
                })
            })
            .collect();
        // Each is joined: a scope alone does not wait for what runs when its threads end.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(ended.load(crate::sync::Ordering::Relaxed), 3);
}

#[test]
fn a_dropped_key_is_given_back() {
    // More than there are (1024 on Linux).
    for _ in 0..5000 {
        let mut value = 0_u8;
        let key = thread_model().create_tls(&raw mut value).unwrap();
        assert_eq!(thread_model().get_tls(&key), &raw mut value);
    }
}

#[test]
fn sleeping_takes_at_least_as_long_as_asked() {
    let before = Instant::now();
    sleep(Duration::from_millis(3));
    assert!(before.elapsed() >= Duration::from_millis(3));
    thread_model().sleep_for_us(0);
    pause();
    pause_os_thread();
}
