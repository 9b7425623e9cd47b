/* A kernel that does all that the device's header offers, for CUDA and HIP. */
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#include "hshm/device.h"

extern "C" __global__ void exercise(hshm_view view, hshm_storage storage, int *status) {
    hshm_heap heap;
    *status = hshm_attach(&heap, &view);
    if (*status != HSHM_OK) return;
    hshm_u64 block = hshm_receive(&heap);
    if (block) hshm_free(&heap, block);
    block = hshm_allocate(&heap, 100);
    if (!block) return;
    hshm_u64 *words = (hshm_u64 *)hshm_resolve(&heap, block, 100);
    words[0] = hshm_thread_id();
    hshm_u64 key;
    if (hshm_storage_create(&storage, &key, words)) words[1] = (hshm_u64)hshm_storage_get(&storage, key);
    while (!hshm_send(&heap, block)) hshm_yield();
    hshm_sleep_us(10);
    hshm_drain(&heap, 16);
}
