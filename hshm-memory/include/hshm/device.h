/* hshm on a device: one header for CUDA C++ (nvcc, NVRTC, clang), HIP and plain C++.
 *
 * A process registers a segment with its driver, makes an arena in it or finds one, claims it, and passes kernels
 * a view of both (hshm_view, from DeviceArena::view in the Rust library). Device code attaches, which checks
 * what it is about to rely on, and then allocates, frees, resolves offsets, and exchanges blocks with the host:
 *
 *     __global__ void work(hshm_view view) {
 *         hshm_heap heap;
 *         if (hshm_attach(&heap, &view) != HSHM_OK) return;
 *         hshm_u64 block = hshm_allocate(&heap, 100);
 *         if (block) {
 *             float *data = (float *)hshm_resolve(&heap, block, 100);
 *             ...
 *             hshm_send(&heap, block);
 *         }
 *     }
 *
 * Who writes what
 * ---------------
 * Over PCIe a device and the processors cannot both do atomic read-modify-write on a word. So no word is
 * modified by both. What only device code modifies (the chunks and their bitmaps, the device's ends of the rings)
 * it modifies with atomics of device scope, and while it does the host relies on none of it: such a modification is
 * promised to be seen by the device alone. What crosses are the places of the rings, and the host's counters: aligned
 * 64-bit words, stored with release and loaded with acquire at system scope. A place is full if it is not zero. Who
 * takes what is there makes it zero, and who fills it waits until it is. So the host never looks at the device's
 * counters, by which the device's many threads, who do not wait for one another, share the places out.
 *
 * Blocks come from chunks of 64 KiB, each cut into blocks of one power of two. A chunk's word says of which, and how
 * many of its blocks are taken or about to be; its bitmap says which are taken. A block is reserved in the
 * word before its bit is set, and the bit is cleared before the word counts it off: there are never more bits than
 * the word counts, so a process that is killed leaves a bitmap that is true, and a count to be made anew from it.
 *
 * The header needs no standard header of a device's compiler. CUDA needs sm_70 or newer. AMD's devices need a way to the
 * host that passes on PCIe's atomic operations, or better.
 */
#ifndef HSHM_DEVICE_H
#define HSHM_DEVICE_H

/* ---- What differs between compilers ---- */

typedef unsigned long long hshm_u64;
typedef unsigned int hshm_u32;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || (defined(__CUDA__) && defined(__clang__))
#define HSHM_CUDA 1
#elif defined(__HIP__)
#define HSHM_HIP 1
#else
#define HSHM_HOST 1
#include <sched.h>
#include <time.h>
#endif

#ifdef HSHM_HOST
#define HSHM_FUNCTION static inline
#else
#define HSHM_FUNCTION static inline __attribute__((device))
#endif

#if defined(HSHM_CUDA) && (defined(__CUDA_ARCH__) || defined(__CUDACC_RTC__))

HSHM_FUNCTION hshm_u64 hshm_load_system(const hshm_u64 *word) {
    hshm_u64 value;
    asm volatile("ld.acquire.sys.b64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}
HSHM_FUNCTION void hshm_store_system(hshm_u64 *word, hshm_u64 value) {
    asm volatile("st.release.sys.b64 [%0], %1;" : : "l"(word), "l"(value) : "memory");
}
HSHM_FUNCTION hshm_u64 hshm_load_device(const hshm_u64 *word) {
    hshm_u64 value;
    asm volatile("ld.acquire.gpu.b64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}
HSHM_FUNCTION void hshm_store_device(hshm_u64 *word, hshm_u64 value) {
    asm volatile("st.relaxed.gpu.b64 [%0], %1;" : : "l"(word), "l"(value) : "memory");
}
HSHM_FUNCTION hshm_u64 hshm_swap_if_device(hshm_u64 *word, hshm_u64 expected, hshm_u64 desired) {
    hshm_u64 found;
    asm volatile("atom.acq_rel.gpu.cas.b64 %0, [%1], %2, %3;"
                 : "=l"(found) : "l"(word), "l"(expected), "l"(desired) : "memory");
    return found;
}
HSHM_FUNCTION hshm_u64 hshm_or_device(hshm_u64 *word, hshm_u64 bits) {
    hshm_u64 found;
    asm volatile("atom.acq_rel.gpu.or.b64 %0, [%1], %2;" : "=l"(found) : "l"(word), "l"(bits) : "memory");
    return found;
}
HSHM_FUNCTION hshm_u64 hshm_and_device(hshm_u64 *word, hshm_u64 bits) {
    hshm_u64 found;
    asm volatile("atom.acq_rel.gpu.and.b64 %0, [%1], %2;" : "=l"(found) : "l"(word), "l"(bits) : "memory");
    return found;
}
HSHM_FUNCTION hshm_u64 hshm_add_device(hshm_u64 *word, hshm_u64 value) {
    hshm_u64 found;
    asm volatile("atom.acq_rel.gpu.add.u64 %0, [%1], %2;" : "=l"(found) : "l"(word), "l"(value) : "memory");
    return found;
}

#define HSHM_REGISTER(name)                                              \
    HSHM_FUNCTION hshm_u64 hshm_register_##name(char axis) {             \
        hshm_u32 value;                                                  \
        if (axis == 'x') asm("mov.u32 %0, %%" #name ".x;" : "=r"(value)); \
        else if (axis == 'y') asm("mov.u32 %0, %%" #name ".y;" : "=r"(value)); \
        else asm("mov.u32 %0, %%" #name ".z;" : "=r"(value));            \
        return value;                                                    \
    }
HSHM_REGISTER(tid)
HSHM_REGISTER(ntid)
HSHM_REGISTER(ctaid)
HSHM_REGISTER(nctaid)
#define HSHM_THREAD(axis) hshm_register_tid(axis)
#define HSHM_THREADS(axis) hshm_register_ntid(axis)
#define HSHM_GROUP(axis) hshm_register_ctaid(axis)
#define HSHM_GROUPS(axis) hshm_register_nctaid(axis)

/* Gives other threads of the multiprocessor a turn. */
HSHM_FUNCTION void hshm_yield(void) { asm volatile("nanosleep.u32 20;"); }

/* Waits after an atomic operation that failed the given number of times before, since others were faster: longer each
 * time, to about four microseconds, and not all threads for as long. Over PCIe one takes about a microsecond, and
 * those on one word follow one another. */
HSHM_FUNCTION void hshm_pause(hshm_u32 failed) {
    hshm_u32 most = 32u << (failed < 6 ? failed : 6);
    hshm_u32 thread = (hshm_u32)(HSHM_GROUP('x') * 61 + HSHM_THREAD('x'));
    asm volatile("nanosleep.u32 %0;" : : "r"(most + thread * 37 % most));
}

/* Waits for at least that long. The instruction may return early, so the clock is asked. */
HSHM_FUNCTION void hshm_sleep_us(hshm_u64 microseconds) {
    hshm_u64 began, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(began));
    do {
        asm volatile("nanosleep.u32 1000;");
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - began < microseconds * 1000);
}

#elif defined(HSHM_HIP) && defined(__HIP_DEVICE_COMPILE__)

HSHM_FUNCTION hshm_u64 hshm_load_system(const hshm_u64 *word) {
    return __hip_atomic_load(word, __ATOMIC_ACQUIRE, __HIP_MEMORY_SCOPE_SYSTEM);
}
HSHM_FUNCTION void hshm_store_system(hshm_u64 *word, hshm_u64 value) {
    __hip_atomic_store(word, value, __ATOMIC_RELEASE, __HIP_MEMORY_SCOPE_SYSTEM);
}
HSHM_FUNCTION hshm_u64 hshm_load_device(const hshm_u64 *word) {
    return __hip_atomic_load(word, __ATOMIC_ACQUIRE, __HIP_MEMORY_SCOPE_AGENT);
}
HSHM_FUNCTION void hshm_store_device(hshm_u64 *word, hshm_u64 value) {
    __hip_atomic_store(word, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
HSHM_FUNCTION hshm_u64 hshm_swap_if_device(hshm_u64 *word, hshm_u64 expected, hshm_u64 desired) {
    __hip_atomic_compare_exchange_strong(word, &expected, desired, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE,
                                         __HIP_MEMORY_SCOPE_AGENT);
    return expected;
}
/* AMD's devices modify memory of the host's by PCIe's own atomic operations, which are compare-and-swap, swap and
 * addition. Others have no effect there, so these are made of the first. */
HSHM_FUNCTION hshm_u64 hshm_or_device(hshm_u64 *word, hshm_u64 bits) {
    hshm_u64 found = __hip_atomic_load(word, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    while (!__hip_atomic_compare_exchange_strong(word, &found, found | bits, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE,
                                                 __HIP_MEMORY_SCOPE_AGENT)) {}
    return found;
}
HSHM_FUNCTION hshm_u64 hshm_and_device(hshm_u64 *word, hshm_u64 bits) {
    hshm_u64 found = __hip_atomic_load(word, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    while (!__hip_atomic_compare_exchange_strong(word, &found, found & bits, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE,
                                                 __HIP_MEMORY_SCOPE_AGENT)) {}
    return found;
}
HSHM_FUNCTION hshm_u64 hshm_add_device(hshm_u64 *word, hshm_u64 value) {
    return __hip_atomic_fetch_add(word, value, __ATOMIC_ACQ_REL, __HIP_MEMORY_SCOPE_AGENT);
}

#define HSHM_AXIS(what, axis) \
    ((axis) == 'x' ? what##_x() : (axis) == 'y' ? what##_y() : what##_z())
#define HSHM_THREAD(axis) ((hshm_u64)HSHM_AXIS(__builtin_amdgcn_workitem_id, axis))
#define HSHM_THREADS(axis) ((hshm_u64)HSHM_AXIS(__builtin_amdgcn_workgroup_size, axis))
#define HSHM_GROUP(axis) ((hshm_u64)HSHM_AXIS(__builtin_amdgcn_workgroup_id, axis))
/* The grid is counted in threads there. */
#define HSHM_GROUPS(axis) ((HSHM_AXIS(__builtin_amdgcn_grid_size, axis) + HSHM_THREADS(axis) - 1) / HSHM_THREADS(axis))

/* Gives other threads of the compute unit a turn. */
HSHM_FUNCTION void hshm_yield(void) { __builtin_amdgcn_s_sleep(1); }

/* Waits after an atomic operation that failed that often before, as with CUDA. */
HSHM_FUNCTION void hshm_pause(hshm_u32 failed) {
    hshm_u32 most = 1u << (failed < 6 ? failed : 6);
    hshm_u32 thread = (hshm_u32)(HSHM_GROUP('x') * 61 + HSHM_THREAD('x'));
    for (hshm_u32 i = thread * 37 % most; i <= most; i++) __builtin_amdgcn_s_sleep(1);
}

/* Waits for at least that long, up to a clock of 3 GHz: 47 times 64 cycles are a microsecond there. */
HSHM_FUNCTION void hshm_sleep_us(hshm_u64 microseconds) {
    for (hshm_u64 i = 0; i < microseconds; i++) __builtin_amdgcn_s_sleep(47);
}

#else /* The host, or the host's half of a compilation for devices, where device functions are only parsed. */

HSHM_FUNCTION hshm_u64 hshm_load_system(const hshm_u64 *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
HSHM_FUNCTION void hshm_store_system(hshm_u64 *word, hshm_u64 value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
HSHM_FUNCTION hshm_u64 hshm_load_device(const hshm_u64 *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
HSHM_FUNCTION void hshm_store_device(hshm_u64 *word, hshm_u64 value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }
HSHM_FUNCTION hshm_u64 hshm_swap_if_device(hshm_u64 *word, hshm_u64 expected, hshm_u64 desired) {
    __atomic_compare_exchange_n(word, &expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    return expected;
}
HSHM_FUNCTION hshm_u64 hshm_or_device(hshm_u64 *word, hshm_u64 bits) { return __atomic_fetch_or(word, bits, __ATOMIC_ACQ_REL); }
HSHM_FUNCTION hshm_u64 hshm_and_device(hshm_u64 *word, hshm_u64 bits) { return __atomic_fetch_and(word, bits, __ATOMIC_ACQ_REL); }
HSHM_FUNCTION hshm_u64 hshm_add_device(hshm_u64 *word, hshm_u64 value) { return __atomic_fetch_add(word, value, __ATOMIC_ACQ_REL); }

#ifdef HSHM_HOST
/* Threads are numbered as they come. */
static inline hshm_u64 hshm_host_thread(void) {
    static hshm_u64 next;
    static __thread hshm_u64 own;
    if (own == 0) own = __atomic_add_fetch(&next, 1, __ATOMIC_RELAXED);
    return own - 1;
}
#define HSHM_THREAD(axis) ((axis) == 'x' ? hshm_host_thread() : 0)
HSHM_FUNCTION void hshm_yield(void) { sched_yield(); }
HSHM_FUNCTION void hshm_pause(hshm_u32 failed) {
    if (failed > 3) sched_yield();
}
HSHM_FUNCTION void hshm_sleep_us(hshm_u64 microseconds) {
    struct timespec left;
    left.tv_sec = (time_t)(microseconds / 1000000);
    left.tv_nsec = (long)(microseconds % 1000000 * 1000);
    while (nanosleep(&left, &left) != 0) {}
}
#else
#define HSHM_THREAD(axis) ((hshm_u64)0)
HSHM_FUNCTION void hshm_yield(void) {}
HSHM_FUNCTION void hshm_pause(hshm_u32) {}
HSHM_FUNCTION void hshm_sleep_us(hshm_u64) {}
#endif
#define HSHM_THREADS(axis) ((hshm_u64)1)
#define HSHM_GROUP(axis) ((hshm_u64)0)
#define HSHM_GROUPS(axis) ((hshm_u64)1)

#endif

/* ---- The thread model ---- */

/* The number of the calling thread, unique in its grid and from 0. */
HSHM_FUNCTION hshm_u64 hshm_thread_id(void) {
    hshm_u64 group = (HSHM_GROUP('z') * HSHM_GROUPS('y') + HSHM_GROUP('y')) * HSHM_GROUPS('x') + HSHM_GROUP('x');
    hshm_u64 thread = (HSHM_THREAD('z') * HSHM_THREADS('y') + HSHM_THREAD('y')) * HSHM_THREADS('x') + HSHM_THREAD('x');
    return group * (HSHM_THREADS('x') * HSHM_THREADS('y') * HSHM_THREADS('z')) + thread;
}

/* Storage that each thread of a grid has for itself: `words` has room for 1 + keys * threads, all zero at
 * first, and the grid at most `threads` threads. */
typedef struct hshm_storage {
    hshm_u64 *words;
    hshm_u64 keys;
    hshm_u64 threads;
} hshm_storage;

HSHM_FUNCTION hshm_u64 *hshm_storage_place(const hshm_storage *storage, hshm_u64 key) {
    hshm_u64 thread = hshm_thread_id();
    if (key >= storage->keys || thread >= storage->threads) return 0;
    return storage->words + 1 + key * storage->threads + thread;
}
HSHM_FUNCTION int hshm_storage_set(const hshm_storage *storage, hshm_u64 key, void *value) {
    hshm_u64 *place = hshm_storage_place(storage, key);
    if (!place) return 0;
    *place = (hshm_u64)value;
    return 1;
}
HSHM_FUNCTION void *hshm_storage_get(const hshm_storage *storage, hshm_u64 key) {
    hshm_u64 *place = hshm_storage_place(storage, key);
    return place ? (void *)*place : (void *)0;
}
/* Makes a key, for all threads, with this thread's value. 0 if there are no more. */
HSHM_FUNCTION int hshm_storage_create(const hshm_storage *storage, hshm_u64 *key, void *value) {
    hshm_u64 made = hshm_add_device(storage->words, 1);
    if (made >= storage->keys) return 0;
    *key = made;
    return hshm_storage_set(storage, made, value);
}

/* ---- The layout, as the Rust library has it (gpu/arena/layout.rs); a test compares ---- */

#define HSHM_SEGMENT_MAGIC 0x31414c546d687368ull /* "hshmTLA1" */
#define HSHM_ARENA_MAGIC 0x315550476d687368ull   /* "hshmGPU1" */
#define HSHM_ARENA_VERSION 2ull
#define HSHM_MAX_PIECES 8
#define HSHM_CHUNK_BYTES 65536ull
#define HSHM_MIN_BLOCK_SHIFT 4
#define HSHM_CLASSES 13ull
#define HSHM_BITMAP_WORDS 64
#define HSHM_HOST_FREES 0
#define HSHM_HOST_BLOCKS 1
#define HSHM_DEVICE_FREES 2
#define HSHM_DEVICE_BLOCKS 3
#define HSHM_RINGS 4

/* A part of the segment that the device sees in one piece. */
typedef struct hshm_piece {
    hshm_u64 offset;
    hshm_u64 bytes;
    hshm_u64 address;
} hshm_piece;

/* What the host tells kernels. Passed by value. */
typedef struct hshm_view {
    hshm_u64 layout_version; /* of the segment, which the host validated */
    hshm_u64 arena;          /* where the arena begins */
    hshm_u64 arena_bytes;    /* and how long it is */
    hshm_u64 piece_count;
    hshm_piece pieces[HSHM_MAX_PIECES];
} hshm_view;

/* Each counter on lines of its own. The host's are for both sides to see, the device's for itself. */
typedef struct hshm_ring {
    hshm_u64 head; /* the filling side's: places that it filled (the host), or gave out (the device) */
    hshm_u64 pad0[15];
    hshm_u64 tail; /* the emptying side's: places that it emptied (the host), or gave out to be (the device) */
    hshm_u64 pad1[15];
} hshm_ring;

typedef struct hshm_chunk {
    hshm_u64 word; /* bits 0-15 blocks reserved, 16-23 class and one; all zero: free */
    hshm_u64 pad[15];
    hshm_u64 bits[HSHM_BITMAP_WORDS]; /* one for each block that is taken */
} hshm_chunk;

typedef struct hshm_arena {
    hshm_u64 magic; /* stored last */
    hshm_u64 version;
    hshm_u64 offset; /* where this stands in the segment */
    hshm_u64 bytes;
    hshm_u64 ring_entries; /* a power of two */
    hshm_u64 chunks;
    hshm_u64 cells_offset;  /* of the first ring's entries, from here; the others' follow */
    hshm_u64 table_offset;  /* of the chunks' descriptors */
    hshm_u64 blocks_offset; /* of the first chunk */
    hshm_u64 pad0[7];
    hshm_u64 owner; /* the host's: the process whose device code works here */
    hshm_u64 refused;
    hshm_u64 lock[2];
    hshm_u64 taking[HSHM_RINGS];
    hshm_u64 pad1[8];
    hshm_u64 hints[16]; /* the device's: for each class the chunk that had room last */
    hshm_ring rings[HSHM_RINGS];
} hshm_arena;

/* ---- Attaching ---- */

enum hshm_status {
    HSHM_OK = 0,
    HSHM_NO_SEGMENT = 1,     /* what stands there is no segment, or of another version */
    HSHM_NO_ARENA = 2,       /* no arena stands there, or one of another version */
    HSHM_BAD_ARENA = 3,      /* its header contradicts itself */
    HSHM_UNREACHABLE = 4     /* the arena is not in one piece for this device */
};

/* What was checked, copied, so that nothing is read twice. A thread's own, or a group's. */
typedef struct hshm_heap {
    hshm_view view;
    hshm_arena *arena;
    hshm_u64 *cells;
    hshm_chunk *table;
    hshm_u64 ring_entries;
    hshm_u64 chunks;
    hshm_u64 blocks; /* the first block's offset in the segment */
} hshm_heap;

/* The address of the `len` bytes at an offset in the segment; null if they are not all in one piece that the device
 * sees, beyond the segment's header. */
HSHM_FUNCTION void *hshm_resolve_view(const hshm_view *view, hshm_u64 offset, hshm_u64 len) {
    hshm_u64 count = view->piece_count < HSHM_MAX_PIECES ? view->piece_count : HSHM_MAX_PIECES;
    if (offset < 4096) return 0;
    for (hshm_u64 i = 0; i < count; i++) {
        hshm_u64 from = offset - view->pieces[i].offset;
        if (offset >= view->pieces[i].offset && from <= view->pieces[i].bytes && len <= view->pieces[i].bytes - from)
            return (void *)(view->pieces[i].address + from);
    }
    return 0;
}

HSHM_FUNCTION void *hshm_resolve(const hshm_heap *heap, hshm_u64 offset, hshm_u64 len) {
    return hshm_resolve_view(&heap->view, offset, len);
}

/* Validates the segment and the arena that the view names. Nothing may be done with a heap for which this did
 * not return HSHM_OK. */
HSHM_FUNCTION int hshm_attach(hshm_heap *heap, const hshm_view *view) {
    heap->view = *view;
    if (view->piece_count == 0 || view->pieces[0].offset != 0 || view->pieces[0].bytes < 4096) return HSHM_UNREACHABLE;
    const hshm_u64 *start = (const hshm_u64 *)view->pieces[0].address;
    if (hshm_load_system(start) != HSHM_SEGMENT_MAGIC) return HSHM_NO_SEGMENT;
    if ((hshm_load_system(start + 1) & 0xffffffffull) != view->layout_version) return HSHM_NO_SEGMENT;
    if (view->arena % 64 || view->arena_bytes < sizeof(hshm_arena)) return HSHM_UNREACHABLE;
    hshm_arena *arena = (hshm_arena *)hshm_resolve_view(view, view->arena, view->arena_bytes);
    if (!arena) return HSHM_UNREACHABLE;
    if (hshm_load_system(&arena->magic) != HSHM_ARENA_MAGIC) return HSHM_NO_ARENA;
    if (hshm_load_device(&arena->version) != HSHM_ARENA_VERSION) return HSHM_NO_ARENA;
    hshm_u64 entries = hshm_load_device(&arena->ring_entries);
    hshm_u64 chunks = hshm_load_device(&arena->chunks);
    hshm_u64 cells = hshm_load_device(&arena->cells_offset);
    hshm_u64 table = hshm_load_device(&arena->table_offset);
    hshm_u64 blocks = hshm_load_device(&arena->blocks_offset);
    if (hshm_load_device(&arena->offset) != view->arena) return HSHM_BAD_ARENA;
    if (hshm_load_device(&arena->bytes) != view->arena_bytes) return HSHM_BAD_ARENA;
    if (entries == 0 || entries > 65536 || (entries & (entries - 1))) return HSHM_BAD_ARENA;
    if (chunks == 0 || chunks > view->arena_bytes / HSHM_CHUNK_BYTES) return HSHM_BAD_ARENA;
    if (cells != sizeof(hshm_arena)) return HSHM_BAD_ARENA;
    if (table != cells + HSHM_RINGS * entries * 8) return HSHM_BAD_ARENA;
    if (blocks < table + chunks * sizeof(hshm_chunk) || blocks % HSHM_CHUNK_BYTES) return HSHM_BAD_ARENA;
    if (blocks > view->arena_bytes || chunks > (view->arena_bytes - blocks) / HSHM_CHUNK_BYTES) return HSHM_BAD_ARENA;
    heap->arena = arena;
    heap->cells = (hshm_u64 *)((char *)arena + cells);
    heap->table = (hshm_chunk *)((char *)arena + table);
    heap->ring_entries = entries;
    heap->chunks = chunks;
    heap->blocks = view->arena + blocks;
    return HSHM_OK;
}

/* ---- Rings ---- */

HSHM_FUNCTION hshm_u64 *hshm_cell(const hshm_heap *heap, int ring, hshm_u64 ticket) {
    return heap->cells + (hshm_u64)ring * heap->ring_entries + (ticket & (heap->ring_entries - 1));
}

/* Puts an entry into a ring that the device fills. 0 if it is full. */
HSHM_FUNCTION int hshm_push(const hshm_heap *heap, int ring, hshm_u64 value) {
    hshm_ring *words = &heap->arena->rings[ring];
    hshm_u64 ticket = hshm_load_device(&words->head);
    hshm_u32 failed = 0;
    for (;;) {
        /* Acquire: what the host emptied, it has read and made zero. */
        if (ticket - hshm_load_system(&words->tail) >= heap->ring_entries) return 0;
        hshm_u64 found = hshm_swap_if_device(&words->head, ticket, ticket + 1);
        if (found == ticket) break;
        ticket = found;
        hshm_pause(failed++);
    }
    /* Died here: a place is given out, and never filled. Who takes the arena over skips it. */
    hshm_store_system(hshm_cell(heap, ring, ticket), value);
    return 1;
}

/* Takes an entry out of a ring that the host fills. 0 if it is empty. */
HSHM_FUNCTION hshm_u64 hshm_pop(const hshm_heap *heap, int ring) {
    hshm_ring *words = &heap->arena->rings[ring];
    hshm_u64 ticket = hshm_load_device(&words->tail);
    hshm_u32 failed = 0;
    for (;;) {
        hshm_u64 there = hshm_load_system(&words->head) - ticket;
        if (there == 0 || there > heap->ring_entries) return 0;
        /* It stays as it is until the tail is beyond it, which the swap finds out. */
        hshm_u64 *cell = hshm_cell(heap, ring, ticket);
        hshm_u64 value = hshm_load_system(cell);
        hshm_u64 found = hshm_swap_if_device(&words->tail, ticket, ticket + 1);
        if (found == ticket) {
            /* Died here: the place is nobody's, and not zero. Who takes the arena over makes it so. */
            hshm_store_system(cell, 0);
            return value;
        }
        ticket = found;
        hshm_pause(failed++);
    }
}

/* ---- Blocks ---- */

#define HSHM_COUNT(word) ((word) & 0xffffull)
#define HSHM_CLASS(word) (((word) >> 16) & 0xffull)
#define HSHM_ONE_OF(class_) (((class_) + 1) << 16)
#define HSHM_BLOCKS(class_) (1ull << (16 - HSHM_MIN_BLOCK_SHIFT - (class_)))

/* Counts a block off that was reserved; the chunk is free for any class after the last one. */
HSHM_FUNCTION void hshm_count_off(hshm_chunk *chunk) {
    hshm_u64 word = hshm_load_device(&chunk->word);
    hshm_u32 failed = 0;
    while (HSHM_COUNT(word) != 0) {
        hshm_u64 next = HSHM_COUNT(word) == 1 ? 0 : word - 1;
        hshm_u64 found = hshm_swap_if_device(&chunk->word, word, next);
        if (found == word) return;
        word = found;
        hshm_pause(failed++);
    }
}

/* Takes a bit of a chunk in which one is reserved. -1 if others were always faster. The seed, which differs between
 * threads, says where to look first, so that those who come at once do not all want the same bit. */
HSHM_FUNCTION long hshm_take_bit(hshm_chunk *chunk, hshm_u64 class_, hshm_u64 seed) {
    hshm_u64 blocks = HSHM_BLOCKS(class_);
    hshm_u64 words = (blocks + 63) / 64;
    hshm_u64 mask = blocks >= 64 ? ~0ull : (1ull << blocks) - 1;
    hshm_u64 first = ~0ull << (seed / words % 64);
    for (int pass = 0; pass < 64; pass++) {
        for (hshm_u64 i = 0; i < words; i++) {
            hshm_u64 at = (i + seed) % words;
            hshm_u64 room = ~hshm_load_device(&chunk->bits[at]) & mask;
            while (room) {
                hshm_u64 from = room & first ? room & first : room;
                hshm_u64 bit = from & (0 - from);
                hshm_u64 before = hshm_or_device(&chunk->bits[at], bit);
                if (!(before & bit)) {
                    int number = 0;
                    while (!((bit >> number) & 1)) number++;
                    return (long)(at * 64 + (hshm_u64)number);
                }
                room = ~before & mask;
            }
        }
    }
    return -1;
}

/* Frees a block of the device's own. 0 if none begins there. */
HSHM_FUNCTION int hshm_free_own(const hshm_heap *heap, hshm_u64 block) {
    hshm_u64 from = block - heap->blocks;
    if (block < heap->blocks || from / HSHM_CHUNK_BYTES >= heap->chunks) return 0;
    hshm_chunk *chunk = heap->table + from / HSHM_CHUNK_BYTES;
    hshm_u64 word = hshm_load_device(&chunk->word);
    if (word == 0 || HSHM_CLASS(word) == 0 || HSHM_CLASS(word) > HSHM_CLASSES) return 0;
    hshm_u64 shift = HSHM_MIN_BLOCK_SHIFT + HSHM_CLASS(word) - 1;
    hshm_u64 within = from % HSHM_CHUNK_BYTES;
    hshm_u64 number = within >> shift;
    if (within & ((1ull << shift) - 1)) return 0;
    hshm_u64 bit = 1ull << (number % 64);
    if (!(hshm_and_device(&chunk->bits[number / 64], ~bit) & bit)) return 0;
    /* Died here: the block is free, and counted. The count is made anew from the bits. */
    hshm_count_off(chunk);
    return 1;
}

/* Frees what the host gave back, at most `most` blocks, and says how many. Every now and then some thread
 * must; allocations do when they find no room. */
HSHM_FUNCTION hshm_u64 hshm_drain(const hshm_heap *heap, hshm_u64 most) {
    hshm_u64 done = 0;
    while (done < most) {
        hshm_u64 block = hshm_pop(heap, HSHM_HOST_FREES);
        if (!block) break;
        hshm_free_own(heap, block);
        done++;
    }
    return done;
}

HSHM_FUNCTION hshm_u64 hshm_allocate_class(const hshm_heap *heap, hshm_u64 class_) {
    hshm_u64 seed = hshm_thread_id();
    hshm_u64 hint = hshm_load_device(&heap->arena->hints[class_]);
    for (hshm_u64 i = 0; i < heap->chunks; i++) {
        hshm_u64 at = (hint % heap->chunks + i) % heap->chunks;
        hshm_chunk *chunk = heap->table + at;
        hshm_u64 word = hshm_load_device(&chunk->word);
        hshm_u32 failed = 0;
        for (;;) {
            hshm_u64 next;
            if (word == 0) next = HSHM_ONE_OF(class_) | 1;
            else if (HSHM_CLASS(word) == class_ + 1 && HSHM_COUNT(word) < HSHM_BLOCKS(class_)) next = word + 1;
            else break;
            hshm_u64 found = hshm_swap_if_device(&chunk->word, word, next);
            if (found != word) {
                word = found;
                hshm_pause(failed++);
                continue;
            }
            /* Died here: a block is counted that no bit marks. */
            long number = hshm_take_bit(chunk, class_, seed);
            if (number < 0) {
                hshm_count_off(chunk);
                break;
            }
            if (i != 0) hshm_store_device(&heap->arena->hints[class_], at);
            return heap->blocks + at * HSHM_CHUNK_BYTES + ((hshm_u64)number << (HSHM_MIN_BLOCK_SHIFT + class_));
        }
    }
    return 0;
}

/* Allocates a block of at least `bytes` bytes, up to 64 KiB, aligned to its size rounded up to a power of two.
 * Returns its offset, or 0 if there is no room or the size is beyond that: larger ones the host makes, and sends. */
HSHM_FUNCTION hshm_u64 hshm_allocate(const hshm_heap *heap, hshm_u64 bytes) {
    hshm_u64 class_ = 0;
    if (bytes > HSHM_CHUNK_BYTES) return 0;
    while ((1ull << (HSHM_MIN_BLOCK_SHIFT + class_)) < bytes) class_++;
    hshm_u64 block = hshm_allocate_class(heap, class_);
    /* The host may have given blocks back. */
    while (!block && hshm_drain(heap, 64) > 0) block = hshm_allocate_class(heap, class_);
    return block;
}

/* Whether the block is one of the arena's. */
HSHM_FUNCTION int hshm_is_own(const hshm_heap *heap, hshm_u64 block) {
    return block >= heap->blocks && (block - heap->blocks) / HSHM_CHUNK_BYTES < heap->chunks;
}

/* Frees a block, of the device's or of the host's, which gets it back through a ring. 0 if none begins there, or if the ring
 * is full: then the host must drain it first. */
HSHM_FUNCTION int hshm_free(const hshm_heap *heap, hshm_u64 block) {
    if (hshm_is_own(heap, block)) return hshm_free_own(heap, block);
    return block ? hshm_push(heap, HSHM_DEVICE_FREES, block) : 0;
}

/* Hands a block, of whichever side, to the host. 0 if the ring is full. */
HSHM_FUNCTION int hshm_send(const hshm_heap *heap, hshm_u64 block) {
    return block ? hshm_push(heap, HSHM_DEVICE_BLOCKS, block) : 0;
}

/* Takes a block that the host handed over; 0 if there is none. */
HSHM_FUNCTION hshm_u64 hshm_receive(const hshm_heap *heap) { return hshm_pop(heap, HSHM_HOST_BLOCKS); }

#endif
