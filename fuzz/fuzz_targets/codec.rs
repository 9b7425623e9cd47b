//! Whatever bytes come as a packet: an error of one line, or a message that, encoded again, is the same
//! one; and no more memory than a packet's length justifies.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::{Debug, Display};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use hshm_proto::limits::{MAX_HANDSHAKE_BYTES, MAX_REPLY_BYTES, MAX_REQUEST_BYTES};
use hshm_proto::{CodecError, Hello, WelcomeOrRefusal};
use libfuzzer_sys::fuzz_target;

/// What a message may take beyond its packet's length: what a list is given room for before its elements
/// are seen, and again while it moves.
const ROOM: usize = 4 << 20;
/// How many bytes one byte of a packet may become. The shortest element of a list is a few bytes long.
const GROWTH: usize = 128;

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: [ffi] it does what the system's allocator does.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: [ffi] as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: [ffi] as the caller promised.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Does `work`, which may allocate what `bytes` of a packet justify.
fn bounded<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let done = work();
    let taken = MOST.load(Relaxed).saturating_sub(before);
    assert!(taken <= ROOM + bytes * GROWTH, "{taken} bytes were allocated for {bytes}");
    done
}

fn one_line(text: impl Display) {
    let text = text.to_string();
    assert!(!text.contains('\n') && text.len() < 4096, "{text:?}");
}

/// Decodes, and if that goes, encodes and decodes again.
fn both_ways<T: Debug + PartialEq>(
    packet: &[u8],
    limit: usize,
    decode: impl Fn(&[u8]) -> Result<T, CodecError>,
    encode: impl Fn(&T) -> Result<Vec<u8>, CodecError>,
) -> Option<T> {
    match bounded(packet.len(), || decode(packet)) {
        Ok(message) => {
            assert!(packet.len() <= limit);
            let again = encode(&message).expect("what was short enough still is");
            assert!(again.len() <= limit);
            assert_eq!(decode(&again).as_ref(), Ok(&message));
            Some(message)
        }
        Err(error) => {
            one_line(error);
            None
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((way, rest)) = data.split_first() else { return };
    // Longer than any packet may be, now and then: the input itself never is.
    let mut packet = rest.to_vec();
    if way & 0x40 != 0 {
        packet = packet.repeat(1 + usize::from(way & 0x3f));
    }
    match way >> 4 & 3 {
        0 => {
            let (decode, encode) = (hshm_proto::decode_request, hshm_proto::encode_request);
            let request = both_ways(&packet, MAX_REQUEST_BYTES, decode, encode);
            if let Some(request) = request {
                assert_eq!(hshm_proto::peek_id(&packet), request.id);
                assert!(!request.body.verb().is_empty());
                if let Err(refusal) = request.body.validate() {
                    one_line(refusal);
                }
            }
        }
        1 => {
            let (decode, encode) = (hshm_proto::decode_reply, hshm_proto::encode_reply);
            both_ways(&packet, MAX_REPLY_BYTES, decode, encode);
        }
        2 => {
            let hello = |hello: &Hello| Ok(hello.encode());
            let hello = both_ways(&packet, MAX_HANDSHAKE_BYTES, Hello::decode, hello);
            if let Some(hello) = hello {
                let ours = hshm_proto::VersionRange::SUPPORTED;
                if let Err(mismatch) = ours.negotiate(hello.versions) {
                    one_line(mismatch);
                }
                let _ = hshm_proto::validate_client_name(&hello.client_name).map_err(one_line);
            }
        }
        _ => {
            let encode = |answer: &WelcomeOrRefusal| {
                Ok(match answer {
                    WelcomeOrRefusal::Welcome(welcome) => welcome.encode(),
                    WelcomeOrRefusal::Refusal(refusal) => refusal.encode(),
                })
            };
            both_ways(&packet, MAX_HANDSHAKE_BYTES, WelcomeOrRefusal::decode, encode);
        }
    }
});
