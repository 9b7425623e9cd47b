/* The device's header as a shared library, so that threads of the host run device code. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "hshm/device.h"

#ifdef __cplusplus
#define EXPORT extern "C" __attribute__((visibility("default")))
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* A heap of the calling thread's, or null and the reason. */
EXPORT hshm_heap *test_attach(const hshm_view *view, int *status) {
    hshm_heap *heap = (hshm_heap *)calloc(1, sizeof(hshm_heap));
    *status = hshm_attach(heap, view);
    if (*status == HSHM_OK) return heap;
    free(heap);
    return NULL;
}
EXPORT void test_detach(hshm_heap *heap) { free(heap); }
EXPORT hshm_u64 test_allocate(hshm_heap *heap, hshm_u64 bytes) { return hshm_allocate(heap, bytes); }
EXPORT int test_free(hshm_heap *heap, hshm_u64 block) { return hshm_free(heap, block); }
EXPORT int test_send(hshm_heap *heap, hshm_u64 block) { return hshm_send(heap, block); }
EXPORT hshm_u64 test_receive(hshm_heap *heap) { return hshm_receive(heap); }
EXPORT hshm_u64 test_drain(hshm_heap *heap, hshm_u64 most) { return hshm_drain(heap, most); }
EXPORT void *test_resolve(hshm_heap *heap, hshm_u64 offset, hshm_u64 len) { return hshm_resolve(heap, offset, len); }
EXPORT hshm_u64 test_thread(void) { return hshm_thread_id(); }
EXPORT void test_sleep(hshm_u64 microseconds) { hshm_sleep_us(microseconds); hshm_yield(); }
EXPORT int test_storage_create(const hshm_storage *storage, hshm_u64 *key, void *value) {
    return hshm_storage_create(storage, key, value);
}
EXPORT int test_storage_set(const hshm_storage *storage, hshm_u64 key, void *value) {
    return hshm_storage_set(storage, key, value);
}
EXPORT void *test_storage_get(const hshm_storage *storage, hshm_u64 key) { return hshm_storage_get(storage, key); }

/* What the header says of the layout, one a line. */
#define SAY(what) printf("%s=%llu\n", #what, (hshm_u64)(what));
EXPORT void test_layout(void);
EXPORT void test_layout(void) {
    SAY(HSHM_SEGMENT_MAGIC) SAY(HSHM_ARENA_MAGIC) SAY(HSHM_ARENA_VERSION) SAY(HSHM_MAX_PIECES)
    SAY(HSHM_CHUNK_BYTES) SAY(HSHM_MIN_BLOCK_SHIFT) SAY(HSHM_CLASSES) SAY(HSHM_BITMAP_WORDS)
    SAY(HSHM_HOST_FREES) SAY(HSHM_HOST_BLOCKS) SAY(HSHM_DEVICE_FREES) SAY(HSHM_DEVICE_BLOCKS) SAY(HSHM_RINGS)
    SAY(sizeof(hshm_arena)) SAY(sizeof(hshm_chunk)) SAY(sizeof(hshm_ring)) SAY(sizeof(hshm_view)) SAY(sizeof(hshm_piece))
    SAY(offsetof(hshm_arena, version)) SAY(offsetof(hshm_arena, offset)) SAY(offsetof(hshm_arena, bytes))
    SAY(offsetof(hshm_arena, ring_entries)) SAY(offsetof(hshm_arena, chunks)) SAY(offsetof(hshm_arena, cells_offset))
    SAY(offsetof(hshm_arena, table_offset)) SAY(offsetof(hshm_arena, blocks_offset)) SAY(offsetof(hshm_arena, owner))
    SAY(offsetof(hshm_arena, lock)) SAY(offsetof(hshm_arena, taking)) SAY(offsetof(hshm_arena, hints))
    SAY(offsetof(hshm_arena, rings)) SAY(offsetof(hshm_chunk, bits)) SAY(offsetof(hshm_ring, tail))
    SAY(offsetof(hshm_view, pieces)) SAY(offsetof(hshm_view, arena)) SAY(offsetof(hshm_piece, address))
    fflush(stdout);
}

#ifdef TEST_PROGRAM
int main(void) {
    test_layout();
    return 0;
}
#endif
