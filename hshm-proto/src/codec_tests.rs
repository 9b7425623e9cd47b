//! Tests of the codec: nothing is lost, nothing extra is taken, and no bytes make it panic.

use hshm_memory::backend::{HugePages, NodeSet, NumaPolicy, Obtained};
use hshm_memory::gpu::pool::PoolReport;
use hshm_memory::gpu::{DeviceInfo, DriverInfo, GpuVendor};
use hshm_memory::report::{ClassReport, OperationCounts, Violation, WorkerReport, WorkerState};
use hshm_memory::{
    AllocatorId, AllocatorKind, BackendKind, BackendOptions, CheckReport, HeapReport,
    OffsetPointer, OnExit, ProcessId, RecoveryReport, RepairReport,
};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::error::{ErrorCode, ErrorReply};
use crate::event::{Event, EventCursor, EventKind, EventPage};
use crate::limits::*;
use crate::message::*;

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._ä-]{0,40}"
}

fn backend() -> impl Strategy<Value = BackendKind> {
    prop_oneof![
        Just(BackendKind::PosixShm),
        Just(BackendKind::Memfd),
        Just(BackendKind::CudaShm),
        Just(BackendKind::RocmShm),
    ]
}

fn on_exit() -> impl Strategy<Value = OnExit> {
    prop_oneof![Just(OnExit::Keep), Just(OnExit::Reclaim)]
}

fn create() -> impl Strategy<Value = CreateSegment> {
    let options = (backend(), on_exit(), any::<Option<u32>>(), any::<u32>());
    (text(), any::<u64>(), any::<Option<u64>>(), any::<u64>(), options).prop_map(
        |(name, size_bytes, capacity_bytes, custom_header_bytes, options)| CreateSegment {
            name,
            size_bytes,
            capacity_bytes,
            backend: options.0,
            allocator: AllocatorKind::ThreadLocal,
            custom_header_bytes,
            on_exit: options.1,
            worker_slots: options.2,
            mode: options.3,
        },
    )
}

fn memory() -> impl Strategy<Value = BackendOptions> {
    let nodes = vec(0..NodeSet::MAX_NODES, 1..20).prop_map(|nodes| NodeSet::new(nodes).unwrap());
    let numa = prop_oneof![
        Just(NumaPolicy::Default),
        nodes.clone().prop_map(NumaPolicy::Bind),
        nodes.clone().prop_map(NumaPolicy::Interleave),
        nodes.prop_map(NumaPolicy::Preferred),
    ];
    let huge = prop_oneof![Just(HugePages::System), Just(HugePages::Never), Just(HugePages::Try)];
    (huge, any::<Option<u64>>(), numa, any::<bool>(), any::<bool>()).prop_map(
        |(huge_pages, huge_page_bytes, numa, lock, populate)| BackendOptions {
            huge_pages,
            huge_page_bytes,
            numa,
            lock,
            populate,
        },
    )
}

/// All the nodes that there can be.
fn all_nodes() -> NumaPolicy {
    NumaPolicy::Interleave(NodeSet::new(0..NodeSet::MAX_NODES).unwrap())
}

#[test]
fn a_request_with_all_nodes_fits() {
    let memory = BackendOptions { numa: all_nodes(), ..BackendOptions::default() };
    let segment = CreateSegment::new("n".repeat(MAX_SEGMENT_NAME_BYTES), 1);
    let body = RequestBody::CreateWith { segment, memory };
    let packet = encode_request(&Request { id: 1, body: body.clone() }).unwrap();
    assert_eq!(decode_request(&packet).unwrap().body, body);
}

fn request() -> impl Strategy<Value = RequestBody> {
    prop_oneof![
        Just(RequestBody::Ping),
        Just(RequestBody::Status),
        create().prop_map(RequestBody::Create),
        text().prop_map(|name| RequestBody::Attach { name }),
        text().prop_map(|name| RequestBody::Detach { name }),
        text().prop_map(|name| RequestBody::AttachReadOnly { name }),
        (text(), any::<bool>()).prop_map(|(name, force)| RequestBody::Destroy { name, force }),
        (text(), any::<u64>())
            .prop_map(|(name, size_bytes)| RequestBody::Grow { name, size_bytes }),
        proptest::option::of(text()).prop_map(|after| RequestBody::List { after }),
        (text(), any::<u32>())
            .prop_map(|(name, after_slot)| RequestBody::Inspect { name, after_slot }),
        text().prop_map(|name| RequestBody::Check { name }),
        text().prop_map(|name| RequestBody::Repair { name }),
        (create(), memory())
            .prop_map(|(segment, memory)| RequestBody::CreateWith { segment, memory }),
        text().prop_map(|name| RequestBody::Memory { name }),
        any::<Option<u64>>().prop_map(|after| RequestBody::Sessions { after }),
        Just(RequestBody::Drivers),
        text().prop_map(|name| RequestBody::Device { name }),
        text().prop_map(|name| RequestBody::DeviceMemory { name }),
        text().prop_map(|name| RequestBody::DevicePool { name }),
        (proptest::option::of(text()), any::<Option<(u64, u64)>>(), any::<u32>()).prop_map(
            |(name, after, wait_ms)| {
                let after = after.map(|(run, sequence)| EventCursor { run, sequence });
                RequestBody::Events { name, after, wait_ms }
            }
        ),
        (text(), any::<u32>(), any::<u64>()).prop_map(|(name, device, bytes)| {
            RequestBody::AddDeviceMemory { name, device, bytes }
        }),
    ]
}

fn longest_events() -> ReplyBody {
    let report = RecoveryReport {
        slots: u32::MAX,
        operations_completed: u32::MAX,
        operations_undone: u32::MAX,
        pages_abandoned: u64::MAX,
        pages_freed: u64::MAX,
    };
    let event = Event {
        sequence: u64::MAX,
        unix_ms: u64::MAX,
        segment: "n".repeat(MAX_SEGMENT_NAME_BYTES),
        what: EventKind::Recovered { process: longest_process(), report, micros: u64::MAX },
    };
    ReplyBody::Events(EventPage {
        events: vec![event; EVENTS_PER_PAGE],
        cursor: EventCursor { run: u64::MAX, sequence: u64::MAX },
        missed: u64::MAX,
        restarted: true,
    })
}

/// A segment with every field at its longest.
fn longest_segment() -> SegmentInfo {
    SegmentInfo {
        name: "n".repeat(MAX_SEGMENT_NAME_BYTES),
        backend: BackendKind::Memfd,
        allocator: AllocatorKind::ThreadLocal,
        id: AllocatorId::new(u32::MAX, u32::MAX),
        problem: Some("p".repeat(MAX_TEXT_BYTES)),
        capacity_bytes: u64::MAX,
        committed_bytes: u64::MAX,
        on_exit: OnExit::Reclaim,
        uid: u32::MAX,
        gid: u32::MAX,
        mode: u32::MAX,
        created_unix_ms: u64::MAX,
        object: Some("o".repeat(hshm_memory::backend::MAX_NAME_BYTES)),
        holders: u32::MAX,
        sessions: u32::MAX,
    }
}

fn longest_counts() -> OperationCounts {
    OperationCounts {
        allocations: u64::MAX,
        local_frees: u64::MAX,
        remote_frees: u64::MAX,
        adoptions: u64::MAX,
    }
}

fn longest_process() -> ProcessId {
    ProcessId { pid: u32::MAX, start_ticks: u64::MAX }
}

fn longest_driver() -> DriverStatus {
    let device = DeviceInfo {
        // A driver's characters take four bytes each at most.
        name: "n".repeat(120 * 4),
        memory_bytes: u64::MAX,
        host_native_atomics: Some(true),
    };
    let driver = DriverInfo {
        vendor: GpuVendor::Rocm,
        version: "9".repeat(32),
        devices: vec![device; DEVICES_SHOWN],
    };
    let problem = Some("p".repeat(MAX_TEXT_BYTES));
    DriverStatus { vendor: GpuVendor::Rocm, driver: Some(driver), problem }
}

fn longest_replies() -> Vec<ReplyBody> {
    let worker = WorkerReport {
        slot: u32::MAX,
        process: longest_process(),
        thread: u32::MAX,
        state: WorkerState::Recovering,
        pages: u64::MAX,
        operations: longest_counts(),
    };
    let class = ClassReport {
        block_bytes: u64::MAX,
        pages: u64::MAX,
        blocks: u64::MAX,
        allocated_blocks: u64::MAX,
    };
    let heap = HeapReport {
        layout_version: u32::MAX,
        id: AllocatorId::new(u32::MAX, u32::MAX),
        on_exit: OnExit::Reclaim,
        capacity_bytes: u64::MAX,
        committed_bytes: u64::MAX,
        unit_bytes: u64::MAX,
        units_total: u64::MAX,
        units_free: u64::MAX,
        largest_free_run_bytes: u64::MAX,
        custom_header_bytes: u64::MAX,
        allocated_bytes: u64::MAX,
        allocated_blocks: u64::MAX,
        // Twice what sizes to 64 KiB at 12.5 % steps need.
        classes: vec![class; 256],
        large_blocks: u64::MAX,
        large_bytes: u64::MAX,
        cached_blocks: u64::MAX,
        cached_bytes: u64::MAX,
        abandoned_pages: u64::MAX,
        workers: Vec::new(),
        worker_slots: u32::MAX,
        operations: longest_counts(),
    };
    let violation =
        Violation { invariant: "I99".into(), offset: u64::MAX, what: "v".repeat(MAX_TEXT_BYTES) };
    let session = SessionInfo {
        session: u64::MAX,
        process: longest_process(),
        uid: Some(u32::MAX),
        gid: Some(u32::MAX),
        client_name: "c".repeat(MAX_CLIENT_NAME_BYTES),
        state: SessionState::Holding,
        since_unix_ms: u64::MAX,
        segments: vec!["n".repeat(MAX_SEGMENT_NAME_BYTES); SEGMENTS_PER_SESSION_SHOWN],
        segments_total: u32::MAX,
    };
    let check = CheckReport {
        violations: vec![violation; CheckReport::MAX_VIOLATIONS],
        violations_total: u64::MAX,
        ..CheckReport::default()
    };
    let mut memory = Obtained::default();
    memory.numa = all_nodes();
    memory.resident_bytes = u64::MAX;
    vec![
        ReplyBody::Segments { segments: vec![longest_segment(); SEGMENTS_PER_PAGE], more: true },
        ReplyBody::Sessions { sessions: vec![session; SESSIONS_PER_PAGE], more: true },
        ReplyBody::Inspected(Box::new(HeapPage {
            segment: longest_segment(),
            heap,
            workers: vec![worker; WORKERS_PER_PAGE],
            more_workers: true,
        })),
        ReplyBody::Repaired(RepairReport {
            owners_cleared: u64::MAX,
            lists_dropped: u64::MAX,
            remaining: check.clone(),
            ..RepairReport::default()
        }),
        ReplyBody::Drivers(vec![longest_driver(); 2]),
        ReplyBody::Device(SegmentDevice {
            vendor: GpuVendor::Rocm,
            device: u32::MAX,
            device_name: Some("n".repeat(MAX_TEXT_BYTES)),
            registered_bytes: Some(u64::MAX),
            problem: Some("p".repeat(MAX_TEXT_BYTES)),
        }),
        ReplyBody::DevicePool(Some((
            DeviceMemoryInfo {
                vendor: GpuVendor::Rocm,
                device: u32::MAX,
                bytes: u64::MAX,
                pool: OffsetPointer::new(u64::MAX),
            },
            PoolReport {
                total_bytes: u64::MAX,
                allocated_bytes: u64::MAX,
                allocated_blocks: u64::MAX,
                largest_free_bytes: u64::MAX,
            },
        ))),
        longest_events(),
        ReplyBody::Checked(check),
        ReplyBody::Memory(memory),
    ]
}

#[test]
fn the_longest_page_of_every_list_fits_into_one_packet() {
    for body in longest_replies() {
        let reply = Reply { id: u64::MAX, body: Ok(body) };
        let packet = encode_reply(&reply).unwrap();
        assert_eq!(decode_reply(&packet).unwrap(), reply);
    }
}

#[test]
fn bytes_after_the_end_and_bytes_missing_before_it_are_refused() {
    let request = Request { id: 7, body: RequestBody::Attach { name: "abc".into() } };
    let mut packet = encode_request(&request).unwrap();
    packet.push(0);
    let error = decode_request(&packet).unwrap_err();
    assert_eq!(error, CodecError::Trailing { what: "request", extra_bytes: 1 });
    for len in 0..packet.len() - 1 {
        let error = decode_request(packet.get(..len).unwrap()).unwrap_err();
        assert!(matches!(error, CodecError::Malformed { .. }), "{len} bytes: {error}");
    }
    assert_eq!(peek_id(&packet), 7);
    assert_eq!(peek_id(&[1, 2]), 0);
}

#[test]
fn a_frame_beyond_the_limit_is_refused_both_ways() {
    let body = RequestBody::Attach { name: "x".repeat(MAX_REQUEST_BYTES) };
    let error = encode_request(&Request { id: 1, body }).unwrap_err();
    assert!(matches!(error, CodecError::TooLong { .. }), "{error}");
    let error = decode_request(&vec![0; MAX_REQUEST_BYTES + 1]).unwrap_err();
    assert!(matches!(error, CodecError::TooLong { .. }), "{error}");
    let error = decode_reply(&vec![0; MAX_REPLY_BYTES + 1]).unwrap_err();
    assert!(matches!(error, CodecError::TooLong { .. }), "{error}");
}

#[test]
fn a_length_that_the_packet_does_not_hold_is_refused_without_allocating_it() {
    // Attach (variant 3) with a name said to be 2^60 bytes long.
    let mut packet = 1u64.to_le_bytes().to_vec();
    packet.push(3);
    packet.push(253);
    packet.extend_from_slice(&(1u64 << 60).to_le_bytes());
    assert!(decode_request(&packet).is_err());
}

/// A change of any of these bytes is a new protocol version.
#[test]
fn version_1_is_written_like_this() {
    let id = 0x0102_0304_0506_0708;
    let cases: [(RequestBody, &[u8]); 5] = [
        (RequestBody::Ping, &[0]),
        (RequestBody::Attach { name: "ab".into() }, &[3, 2, b'a', b'b']),
        (RequestBody::Destroy { name: "a".into(), force: true }, &[5, 1, b'a', 1]),
        (RequestBody::Sessions { after: Some(300) }, &[10, 1, 251, 44, 1]),
        (
            RequestBody::Create(CreateSegment {
                backend: BackendKind::Memfd,
                on_exit: OnExit::Reclaim,
                ..CreateSegment::new("a", 9)
            }),
            &[2, 1, b'a', 9, 0, 1, 0, 0, 1, 0, 251, 128, 1],
        ),
    ];
    for (body, expected) in cases {
        let packet = encode_request(&Request { id, body: body.clone() }).unwrap();
        assert_eq!(packet.get(..8).unwrap(), [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(packet.get(8..).unwrap(), expected, "{body:?}");
    }
    let error = ErrorReply::new(ErrorCode::NotFound, "m", "a");
    let packet = encode_reply(&Reply { id, body: Err(error) }).unwrap();
    assert_eq!(packet.get(8..).unwrap(), [1, 3, 1, b'm', 1, b'a']);
    let packet = encode_reply(&Reply { id, body: Ok(ReplyBody::Done) }).unwrap();
    assert_eq!(packet.get(8..).unwrap(), [0, 0]);
}

proptest! {
    #[test]
    fn a_request_comes_back_as_it_was(id: u64, body in request()) {
        let request = Request { id, body };
        let packet = encode_request(&request).unwrap();
        prop_assert_eq!(decode_request(&packet).unwrap(), request);
        prop_assert_eq!(peek_id(&packet), id);
    }

    #[test]
    fn an_error_comes_back_as_it_was(id: u64, code: u32, message in text(), advice in text()) {
        let reply = Reply { id, body: Err(ErrorReply { code, message, advice }) };
        prop_assert_eq!(decode_reply(&encode_reply(&reply).unwrap()).unwrap(), reply);
    }

    #[test]
    fn garbage_is_never_more_than_an_error(bytes in vec(any::<u8>(), 0..400)) {
        let _ = decode_request(&bytes);
        let _ = decode_reply(&bytes);
    }

    #[test]
    fn what_is_decoded_from_damaged_bytes_is_a_whole_message(
        body in request(), at: prop::sample::Index, byte: u8,
    ) {
        let mut packet = encode_request(&Request { id: 1, body }).unwrap();
        let at = at.index(packet.len());
        if let Some(place) = packet.get_mut(at) {
            *place = byte;
        }
        if let Ok(request) = decode_request(&packet) {
            // Different bytes may mean the same (an integer longer than need be), but a message
            // that was accepted can be sent on.
            let again = encode_request(&request).unwrap();
            prop_assert_eq!(decode_request(&again).unwrap(), request);
        }
    }
}
