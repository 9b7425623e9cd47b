/* The kernels of the tests that need a device: for NVRTC, hiprtc and clang; and for a double, whose threads are
 * the host's, as C. Each takes one structure, and tells what it found by the board, a block of the segment. */
#if defined(__CUDACC_RTC__) || defined(__HIPCC_RTC__)
#elif defined(__CUDA__) || defined(__HIP__)
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#endif
#include "hshm/device.h"

typedef struct kit {
    hshm_view view;
    hshm_u64 board; /* where the board is, in the segment */
    hshm_u64 words[7];
} kit;

/* What the board's words are. The host stores the first, the device's threads modify the rest: each few times, since
 * over PCIe that takes long. What kernels that move much have to say is in a block with a word for each thread. */
enum { OVER = 0, SENT = 1, FREED = 2, WRONG = 3, REFUSED = 4, LEFT = 5, BOARD_BYTES = 64 };
/* What the host stores: go on; make nothing new; end. */
enum { GO_ON = 0, NOTHING_NEW = 1, END = 2 };

#ifdef HSHM_HOST
/* The double says where an address of its devices is for its threads; 0 if nowhere. */
__attribute__((visibility("default"))) hshm_u64 (*kit_translate)(hshm_u64);
__attribute__((visibility("default"))) const hshm_u64 kit_bytes = sizeof(kit);
/* A kernel returns 0 here, or 1 if it was given an address that is none of the device's. */
#define KERNEL(name)                                                                    \
    static void name##_body(const kit *k);                                              \
    __attribute__((visibility("default"))) int name(const kit *given);                  \
    int name(const kit *given) {                                                        \
        kit k = *given;                                                                 \
        for (hshm_u64 i = 0; i < k.view.piece_count && i < HSHM_MAX_PIECES; i++)        \
            if (!(k.view.pieces[i].address = kit_translate(k.view.pieces[i].address))) return 1; \
        name##_body(&k);                                                                \
        return 0;                                                                       \
    }                                                                                   \
    static void name##_body(const kit *k)
#define MEMORY(address) ((hshm_u64 *)kit_translate(address))
#else
#define KERNEL(name)                                            \
    HSHM_FUNCTION void name##_body(const kit *k);               \
    extern "C" __global__ void name(kit k) { name##_body(&k); } \
    HSHM_FUNCTION void name##_body(const kit *k)
#define MEMORY(address) ((hshm_u64 *)(address))
#endif

/* One of the words that stand in a block. */
HSHM_FUNCTION hshm_u64 pattern(hshm_u64 block, hshm_u64 at) { return (block + at) * 0x9e3779b97f4a7c15ull; }

HSHM_FUNCTION void fill(hshm_u64 *words, hshm_u64 block, hshm_u64 count) {
    words[0] = count;
    for (hshm_u64 i = 1; i < count; i++) words[i] = pattern(block, i);
}

/* Whether a block is as it was filled, by whichever side. The first word says how long it is. */
HSHM_FUNCTION int is_whole(const hshm_heap *heap, hshm_u64 block) {
    hshm_u64 *words = (hshm_u64 *)hshm_resolve(heap, block, 16);
    if (!words || words[0] < 2 || words[0] > 256 || !hshm_resolve(heap, block, words[0] * 8)) return 0;
    for (hshm_u64 i = 1; i < words[0]; i++)
        if (words[i] != pattern(block, i)) return 0;
    return 1;
}

/* Attaches, and finds the board; null if that fails, which the host sees as nobody's having left. */
HSHM_FUNCTION hshm_u64 *start(hshm_heap *heap, const kit *k) {
    if (hshm_attach(heap, &k->view) != HSHM_OK) return 0;
    return (hshm_u64 *)hshm_resolve(heap, k->board, BOARD_BYTES);
}

/* words[0]: a block of the host's that names words[1] others, each of which is looked at, and turned over. */
KERNEL(turn_over) {
    hshm_heap heap;
    hshm_u64 *board = start(&heap, k);
    if (!board) return;
    hshm_u64 *table = (hshm_u64 *)hshm_resolve(&heap, k->words[0], k->words[1] * 8);
    for (hshm_u64 i = hshm_thread_id() % k->words[2]; table && i < k->words[1]; i += k->words[2]) {
        hshm_u64 *words = (hshm_u64 *)hshm_resolve(&heap, table[i], 16);
        if (!words || !is_whole(&heap, table[i])) {
            hshm_add_device(&board[WRONG], 1);
            continue;
        }
        for (hshm_u64 at = 1; at < words[0]; at++) words[at] = ~words[at];
        hshm_add_device(&board[FREED], 1);
    }
    hshm_add_device(&board[LEFT], 1);
}

/* Each thread sends up to words[0] blocks, and frees what it receives, until the host says that it is over. */
KERNEL(exchange) {
    hshm_heap heap;
    hshm_u64 *board = start(&heap, k);
    if (!board) return;
    hshm_u64 sent = 0, freed = 0, wrong = 0, unsent = 0, unfreed = 0, phase;
    while ((phase = hshm_load_system(&board[OVER])) < END || unfreed) {
        if (phase == GO_ON && !unsent && sent < k->words[0]) {
            hshm_u64 count = 2 + (sent * 7 + hshm_thread_id()) % 150;
            unsent = hshm_allocate(&heap, count * 8);
            if (unsent) fill((hshm_u64 *)hshm_resolve(&heap, unsent, count * 8), unsent, count);
        }
        if (unsent && hshm_send(&heap, unsent)) {
            unsent = 0;
            sent++;
        }
        if (!unfreed && (unfreed = hshm_receive(&heap)) && !is_whole(&heap, unfreed)) wrong++;
        if (unfreed && hshm_free(&heap, unfreed)) {
            unfreed = 0;
            freed++;
        }
        hshm_drain(&heap, 4);
        hshm_yield();
    }
    if (unsent && !hshm_free(&heap, unsent)) wrong++;
    hshm_add_device(&board[SENT], sent);
    hshm_add_device(&board[FREED], freed);
    if (wrong) hshm_add_device(&board[WRONG], wrong);
    hshm_add_device(&board[LEFT], 1);
}

/* Frees what the host gave back, by one thread. */
KERNEL(drain) {
    hshm_heap heap;
    hshm_u64 *board = start(&heap, k);
    if (!board) return;
    hshm_drain(&heap, ~0ull);
    hshm_add_device(&board[LEFT], 1);
}

/* Each thread allocates and frees blocks of words[0] bytes, with four in hand, until the host says that it is over, and
 * tells how many. */
KERNEL(churn) {
    hshm_heap heap;
    hshm_u64 *board = start(&heap, k);
    if (!board) return;
    hshm_u64 kept[4] = {0, 0, 0, 0}, refused = 0, wrong = 0, round = 0;
    int is_over = 0;
    for (hshm_u64 last = ~0ull; round < last; round++) {
        /* The host's word is looked at seldom: that takes as long as an allocation. */
        if (!is_over && round % 8 == 0 && hshm_load_system(&board[OVER]) != GO_ON) {
            is_over = 1;
            last = round + 4;
        }
        hshm_u64 *place = &kept[round % 4];
        if (*place) {
            hshm_u64 *words = (hshm_u64 *)hshm_resolve(&heap, *place, 16);
            if (words[0] != *place || !hshm_free(&heap, *place)) wrong++;
        }
        *place = is_over ? 0 : hshm_allocate(&heap, k->words[0]);
        if (*place) *(hshm_u64 *)hshm_resolve(&heap, *place, 16) = *place;
        else if (!is_over) refused++;
    }
    hshm_add_device(&board[SENT], round - 4);
    if (refused) hshm_add_device(&board[REFUSED], refused);
    if (wrong) hshm_add_device(&board[WRONG], wrong);
    hshm_add_device(&board[LEFT], 1);
}

/* What a device's threads have: each stores its number, and one, in words[2] words from the offset words[0] on; keeps what
 * is its own in storage at the offset words[1], which has room for words[4] keys of words[3] threads; and sleeps for
 * words[5] microseconds. Counts on the board how many keys were made. */
KERNEL(threads) {
    hshm_heap heap;
    hshm_u64 *board = start(&heap, k), key, wrong = 0, self = hshm_thread_id();
    if (!board) return;
    hshm_u64 *numbers = (hshm_u64 *)hshm_resolve(&heap, k->words[0], k->words[2] * 8);
    hshm_storage storage;
    storage.keys = k->words[4];
    storage.threads = k->words[3];
    storage.words = (hshm_u64 *)hshm_resolve(&heap, k->words[1], (1 + storage.keys * storage.threads) * 8);
    if (!numbers || !storage.words) return;
    numbers[self % k->words[2]] = self + 1;
    if (hshm_storage_create(&storage, &key, numbers + self)) {
        hshm_add_device(&board[SENT], 1);
        wrong += hshm_storage_get(&storage, key) != (void *)(numbers + self);
    }
    for (key = 0; key < storage.keys; key++) wrong += !hshm_storage_set(&storage, key, numbers + self + key);
    hshm_sleep_us(k->words[5]);
    hshm_yield();
    for (key = 0; key < storage.keys; key++) wrong += hshm_storage_get(&storage, key) != (void *)(numbers + self + key);
    wrong += hshm_storage_get(&storage, storage.keys) != 0;
    if (wrong) hshm_add_device(&board[WRONG], wrong);
    hshm_add_device(&board[LEFT], 1);
}

/* The rest move words[1] words, words[2] threads together, and each thread stores what it has to say in its word of those
 * from the offset words[4] on. */
typedef struct part {
    hshm_u64 first, end, step;
    hshm_u64 *said; /* null if something is not there */
} part;

HSHM_FUNCTION part part_of(const hshm_heap *heap, const kit *k) {
    part own;
    own.first = hshm_thread_id() % k->words[2];
    own.end = k->words[1];
    own.step = k->words[2];
    own.said = (hshm_u64 *)hshm_resolve(heap, k->words[4], k->words[2] * 8);
    if (own.said) own.said += own.first;
    return own;
}

/* Adds up the words from the offset words[0] on. */
KERNEL(read_all) {
    hshm_heap heap;
    if (!start(&heap, k)) return;
    part own = part_of(&heap, k);
    const hshm_u64 *from = (const hshm_u64 *)hshm_resolve(&heap, k->words[0], k->words[1] * 8);
    if (!from || !own.said) return;
    hshm_u64 sum = 0;
    for (hshm_u64 i = own.first; i < own.end; i += own.step) sum += from[i];
    *own.said = sum;
}

/* Stores in each, from the offset words[0] on, its number and words[3], and says how many they were. */
KERNEL(write_all) {
    hshm_heap heap;
    if (!start(&heap, k)) return;
    part own = part_of(&heap, k);
    hshm_u64 *to = (hshm_u64 *)hshm_resolve(&heap, k->words[0], k->words[1] * 8), done = 0;
    if (!to || !own.said) return;
    for (hshm_u64 i = own.first; i < own.end; i += own.step, done++) to[i] = i + k->words[3];
    *own.said = done;
}

/* The same in the device's own memory, from the address words[0] on. */
KERNEL(write_own) {
    hshm_heap heap;
    if (!start(&heap, k)) return;
    part own = part_of(&heap, k);
    hshm_u64 *to = MEMORY(k->words[0]), done = 0;
    if (!to || !own.said) return;
    for (hshm_u64 i = own.first; i < own.end; i += own.step, done++) to[i] = i + k->words[3];
    *own.said = done;
}

/* Counts which of them are as write_own leaves them. */
KERNEL(check_own) {
    hshm_heap heap;
    if (!start(&heap, k)) return;
    part own = part_of(&heap, k);
    hshm_u64 *from = MEMORY(k->words[0]), right = 0;
    if (!from || !own.said) return;
    for (hshm_u64 i = own.first; i < own.end; i += own.step) right += from[i] == i + k->words[3];
    *own.said = right;
}
