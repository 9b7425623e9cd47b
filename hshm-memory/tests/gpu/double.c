/* Stands in for a driver's library in tests: NVIDIA's if compiled with -DCUDA, AMD's HIP otherwise.
 *
 * A device's own memory is a memory file, which a descriptor passes to other processes as with the real ones.
 * It keeps a table of what is registered, insists on a current context where the real one does, and gives
 * addresses on the device that differ from the host's, so that a forgotten translation shows.
 *
 *   HSHM_DOUBLE_DEVICES   how many devices there are; 2 if not set
 *   HSHM_DOUBLE_FAIL      CALL=CODE: each such call fails with the code; CALL=CODE@N: those from the Nth on
 *   HSHM_DOUBLE_SCATTER   if set, each registration is elsewhere on the device
 *   HSHM_DOUBLE_CRASH     if set, the first call ends the process
 *   HSHM_DOUBLE_HIP       the release of HIP, as it counts them
 *   HSHM_DOUBLE_LOG       a file to which registrations and their ends are written
 *   HSHM_DOUBLE_HANG      a kernel of this name never ends
 *
 * An image of kernels is the path of a shared library here, with its final zero, and a kernel runs on as many threads
 * of the host as it has: tests/device/kernels.cu can be compiled so.
 *
 * -DLACKS_UNREGISTER leaves a function out.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALISED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713
};
enum { MOST = 64 };
static const uint64_t SHIFT = (uint64_t)1 << 52;

static struct { uintptr_t start, end; uint64_t shift; } table[MOST];
static uint64_t made;
static int initialised;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int devices(void) {
    const char *set = getenv("HSHM_DOUBLE_DEVICES");
    return set ? atoi(set) : 2;
}

static int failure(const char *call) {
    if (getenv("HSHM_DOUBLE_CRASH")) abort();
    const char *set = getenv("HSHM_DOUBLE_FAIL");
    size_t len = strlen(call);
    if (!set || strncmp(set, call, len) || set[len] != '=') return 0;
    static int calls;
    const char *from = strchr(set, '@');
    return __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) >= (from ? atoi(from + 1) : 1) ? atoi(set + len + 1) : 0;
}

static void note(const char *what, uintptr_t start, uintptr_t bytes, unsigned flags) {
    const char *file = getenv("HSHM_DOUBLE_LOG");
    FILE *out = file ? fopen(file, "a") : NULL;
    if (!out) return;
    fprintf(out, "%s %d %#lx %lu %u\n", what, (int)getpid(), (unsigned long)start, (unsigned long)bytes, flags);
    fclose(out);
}

static int add(void *pointer, size_t bytes, unsigned flags) {
    uintptr_t start = (uintptr_t)pointer, end = start + bytes;
    int at = -1, result = 0;
    if (bytes == 0 || start % 4096 || flags != 3) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++) {
        if (!table[i].end) at = i;
        else if (start < table[i].end && table[i].start < end) result = ALREADY_REGISTERED;
    }
    if (!result && at < 0) result = OUT_OF_MEMORY;
    if (!result) {
        made++;
        table[at].start = start;
        table[at].end = end;
        table[at].shift = SHIFT * (getenv("HSHM_DOUBLE_SCATTER") ? made : 1);
        note("register", start, bytes, flags);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static __attribute__((unused)) int take(void *pointer) {
    int result = NOT_REGISTERED;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++)
        if (table[i].end && table[i].start == (uintptr_t)pointer) {
            note("unregister", table[i].start, table[i].end - table[i].start, 0);
            table[i].end = 0;
            result = 0;
        }
    pthread_mutex_unlock(&lock);
    return result;
}

static int find(uint64_t *found, void *pointer) {
    int result = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++)
        if (table[i].end && table[i].start <= (uintptr_t)pointer && (uintptr_t)pointer < table[i].end) {
            *found = (uint64_t)(uintptr_t)pointer + table[i].shift;
            result = 0;
        }
    pthread_mutex_unlock(&lock);
    return result;
}

/* ---- A device's own memory ---- */

struct properties { int kind, handles, location_kind, location; void *win32; unsigned char flags[8]; };
struct access { int location_kind, location, flags; };
enum { UNIT = 2 << 20 };

/* Ranges that were reserved; mapped, and then with access. Their addresses on the device are shifted too. */
static struct { uintptr_t start, end; int mapped, access; } own[MOST];

static int is_wrong(const struct properties *p) {
    return p->kind != 1 || p->handles != 1 || p->location_kind != 1 || p->location < 0 || p->location >= devices() || p->win32;
}
static int own_granularity(size_t *unit, const struct properties *p) { *unit = UNIT; return is_wrong(p) ? INVALID_VALUE : 0; }
static int own_create(uint64_t *handle, size_t bytes, const struct properties *p) {
    if (is_wrong(p) || !bytes || bytes % UNIT) return INVALID_VALUE;
    int file = memfd_create("device-memory", MFD_CLOEXEC);
    if (file < 0 || bytes > (size_t)1 << 34 || ftruncate(file, (off_t)bytes)) {
        if (file >= 0) close(file);
        return OUT_OF_MEMORY;
    }
    *handle = (uint64_t)file + 1;
    note("create", (uintptr_t)file, bytes, 0);
    return 0;
}
static int own_release(uint64_t handle) {
    note("release-memory", (uintptr_t)handle - 1, 0, 0);
    return close((int)handle - 1) ? INVALID_VALUE : 0;
}
static int own_copy(int file) { return fcntl(file, F_DUPFD_CLOEXEC, 0); }
static int own_export(int *file, uint64_t handle, int kind) {
    /* Open even for programs that are executed. */
    *file = kind == 1 ? dup((int)handle - 1) : -1;
    return *file < 0 ? INVALID_VALUE : 0;
}
static int own_import(uint64_t *handle, int file, int kind) {
    /* What is no memory file is none of the driver's. */
    int copy = kind == 1 && fcntl(file, F_GET_SEALS) >= 0 ? own_copy(file) : -1;
    *handle = (uint64_t)copy + 1;
    return copy < 0 ? INVALID_VALUE : 0;
}
static int own_reserve(uint64_t *address, size_t bytes) {
    void *found = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int result = found == MAP_FAILED || bytes % UNIT ? INVALID_VALUE : OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST && result == OUT_OF_MEMORY; i++)
        if (!own[i].end) {
            own[i].start = (uintptr_t)found;
            own[i].end = own[i].start + bytes;
            own[i].mapped = own[i].access = 0;
            *address = own[i].start + SHIFT;
            result = 0;
        }
    pthread_mutex_unlock(&lock);
    return result;
}
/* The whole range that begins there and is that long; -1 if there is none. */
static int own_find(uint64_t address, size_t bytes) {
    for (int i = 0; i < MOST; i++)
        if (own[i].end && own[i].start + SHIFT == address && own[i].end - own[i].start == bytes) return i;
    return -1;
}
static int own_map(uint64_t address, size_t bytes, size_t offset, uint64_t handle) {
    struct stat found;
    pthread_mutex_lock(&lock);
    int at = own_find(address, bytes), result = INVALID_VALUE;
    if (at >= 0 && !own[at].mapped && !fstat((int)handle - 1, &found) && offset + bytes <= (size_t)found.st_size) {
        void *place = (void *)own[at].start;
        int flags = MAP_SHARED | MAP_FIXED;
        result = mmap(place, bytes, PROT_READ | PROT_WRITE, flags, (int)handle - 1, (off_t)offset) == place ? 0 : OUT_OF_MEMORY;
        own[at].mapped = !result;
    }
    pthread_mutex_unlock(&lock);
    if (!result) note("map", (uintptr_t)address, bytes, 0);
    return result;
}
static int own_access(uint64_t address, size_t bytes, const struct access *access, size_t count) {
    if (count != 1 || access->location_kind != 1 || access->flags != 3) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    int at = own_find(address, bytes), result = at >= 0 && own[at].mapped ? 0 : INVALID_VALUE;
    if (!result) own[at].access = 1;
    pthread_mutex_unlock(&lock);
    return result;
}
static int own_unmap(uint64_t address, size_t bytes) {
    pthread_mutex_lock(&lock);
    int at = own_find(address, bytes), result = at >= 0 && own[at].mapped ? 0 : INVALID_VALUE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    if (!result) mmap((void *)own[at].start, bytes, PROT_NONE, flags, -1, 0);
    if (!result) own[at].mapped = own[at].access = 0;
    pthread_mutex_unlock(&lock);
    if (!result) note("unmap", (uintptr_t)address, bytes, 0);
    return result;
}
static int own_unreserve(uint64_t address, size_t bytes) {
    pthread_mutex_lock(&lock);
    int at = own_find(address, bytes), result = at >= 0 && !own[at].mapped ? 0 : INVALID_VALUE;
    if (!result) munmap((void *)own[at].start, bytes);
    if (!result) own[at].end = 0;
    pthread_mutex_unlock(&lock);
    return result;
}

/* ---- Kernels ---- */

/* Where the host's threads find what kernels know by this address; 0 if nowhere. */
static uint64_t translate(uint64_t device) {
    uint64_t result = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++)
        if (table[i].end && table[i].start + table[i].shift <= device && device < table[i].end + table[i].shift)
            result = device - table[i].shift;
    for (int i = 0; i < MOST; i++)
        if (own[i].access && own[i].start + SHIFT <= device && device < own[i].end + SHIFT) result = device - SHIFT;
    pthread_mutex_unlock(&lock);
    return result;
}

enum { MOST_THREADS = 1024 };
static struct { pthread_t threads[MOST_THREADS]; int count, over; void *given[MOST_THREADS]; } running;
struct work { int (*kernel)(const void *); const void *given; };

static void *work(void *own) {
    struct work work = *(struct work *)own;
    free(own);
    if (!work.kernel) for (;;) pause();
    void *said = work.kernel(work.given) ? &running : NULL;
    __atomic_add_fetch(&running.over, 1, __ATOMIC_RELEASE);
    return said;
}

static int load(void **module, const void *image) {
    *module = dlopen(image, RTLD_NOW | RTLD_LOCAL);
    if (!*module) return INVALID_IMAGE;
    uint64_t (**hook)(uint64_t) = (uint64_t (**)(uint64_t))dlsym(*module, "kit_translate");
    if (!hook) return INVALID_IMAGE;
    *hook = translate;
    return 0;
}

struct function { int (*kernel)(const void *); size_t bytes; };

static int function(void **found, void *module, const char *name) {
    const uint64_t *bytes = dlsym(module, "kit_bytes");
    void *kernel = dlsym(module, name);
    if (!bytes || !kernel) return NOT_FOUND;
    struct function *made = malloc(sizeof *made);
    const char *hangs = getenv("HSHM_DOUBLE_HANG");
    made->bytes = *bytes;
    *(void **)&made->kernel = hangs && !strcmp(hangs, name) ? NULL : kernel;
    *found = made;
    return 0;
}

static int launch(struct function *function, unsigned threads, void **parameters) {
    if (!threads || threads + (unsigned)running.count > MOST_THREADS) return INVALID_VALUE;
    void *given = malloc(function->bytes);
    memcpy(given, parameters[0], function->bytes);
    for (unsigned i = 0; i < threads; i++) {
        struct work *own = malloc(sizeof *own);
        own->kernel = function->kernel;
        own->given = given;
        running.given[running.count] = i ? NULL : given;
        if (pthread_create(&running.threads[running.count], NULL, work, own)) abort();
        running.count++;
    }
    return 0;
}

static int synchronize(void) {
    int result = 0;
    for (int i = 0; i < running.count; i++) {
        void *said;
        pthread_join(running.threads[i], &said);
        if (said) result = ILLEGAL_ADDRESS;
    }
    for (int i = 0; i < running.count; i++) free(running.given[i]);
    running.count = running.over = 0;
    return result;
}

/* A stream is null here. */
static int query(const void *stream) {
    if (stream) return INVALID_VALUE;
    return __atomic_load_n(&running.over, __ATOMIC_ACQUIRE) < running.count ? NOT_READY : 0;
}

static int count(int *number, const char *call) {
    int failed = failure(call);
    if (failed) return failed;
    if (!initialised) return NOT_INITIALISED;
    *number = devices();
    return *number ? 0 : NO_DEVICE;
}

#define FAIL_IF_TOLD do { int failed = failure(__func__); if (failed) return failed; } while (0)
#define EXPORT __attribute__((visibility("default"))) int

#ifdef CUDA

static int retained[MOST];
static __thread int stack[MOST], depth;

/* A context is its device's number and one; it serves as long as somebody retains it. */
static int no_context(void) {
    return depth == 0 || !retained[stack[depth - 1] - 1];
}

EXPORT cuInit(unsigned flags) {
    FAIL_IF_TOLD;
    initialised = 1;
    return flags ? INVALID_VALUE : devices() ? 0 : NO_DEVICE;
}
EXPORT cuDriverGetVersion(int *version) { FAIL_IF_TOLD; *version = 12040; return 0; }
EXPORT cuDeviceGetCount(int *number) { return count(number, __func__); }
EXPORT cuDeviceGet(int *device, int ordinal) {
    FAIL_IF_TOLD;
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices() ? 0 : INVALID_DEVICE;
}
EXPORT cuDeviceGetName(char *name, int len, int device) {
    FAIL_IF_TOLD;
    snprintf(name, (size_t)len, "Double %d", device);
    return 0;
}
EXPORT cuDeviceTotalMem_v2(size_t *bytes, int device) { FAIL_IF_TOLD; (void)device; *bytes = (size_t)1 << 34; return 0; }
EXPORT cuDeviceGetAttribute(int *value, int attribute, int device) {
    FAIL_IF_TOLD;
    switch (attribute) {
    case 75: *value = 9; break; /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, and MINOR */
    case 76: *value = 0; break;
    case 86: *value = device == 1; break; /* CU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED */
    default: return INVALID_VALUE;
    }
    return 0;
}
EXPORT cuDevicePrimaryCtxRetain(void **context, int device) {
    FAIL_IF_TOLD;
    pthread_mutex_lock(&lock);
    retained[device]++;
    pthread_mutex_unlock(&lock);
    *context = (void *)(intptr_t)(device + 1);
    return 0;
}
EXPORT cuDevicePrimaryCtxRelease_v2(int device) {
    FAIL_IF_TOLD;
    pthread_mutex_lock(&lock);
    int left = --retained[device];
    pthread_mutex_unlock(&lock);
    note("release", (uintptr_t)device, (uintptr_t)left, 0);
    return left < 0 ? INVALID_CONTEXT : 0;
}
EXPORT cuCtxPushCurrent_v2(void *context) { FAIL_IF_TOLD; stack[depth++] = (int)(intptr_t)context; return 0; }
EXPORT cuCtxPopCurrent_v2(void **context) {
    FAIL_IF_TOLD;
    if (!depth) return INVALID_CONTEXT;
    *context = (void *)(intptr_t)stack[--depth];
    return 0;
}
EXPORT cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned flags) {
    FAIL_IF_TOLD;
    return no_context() ? INVALID_CONTEXT : add(pointer, bytes, flags);
}
#ifndef LACKS_UNREGISTER
EXPORT cuMemHostUnregister(void *pointer) { FAIL_IF_TOLD; return no_context() ? INVALID_CONTEXT : take(pointer); }
#endif
EXPORT cuMemHostGetDevicePointer_v2(uint64_t *device, void *pointer, unsigned flags) {
    FAIL_IF_TOLD;
    return no_context() ? INVALID_CONTEXT : flags ? INVALID_VALUE : find(device, pointer);
}
EXPORT cuModuleLoadData(void **module, const void *image) {
    FAIL_IF_TOLD;
    return no_context() ? INVALID_CONTEXT : load(module, image);
}
EXPORT cuModuleLoadDataEx(void **module, const void *image, unsigned count, int *options, void **values) {
    FAIL_IF_TOLD;
    /* A buffer for what is wrong, and how long it is. */
    if (count != 2 || options[0] != 5 || options[1] != 6 || (uintptr_t)values[1] < 2) return INVALID_VALUE;
    int result = no_context() ? INVALID_CONTEXT : load(module, image);
    if (result) snprintf(values[0], (size_t)(uintptr_t)values[1], "the double says %d", result);
    return result;
}
EXPORT cuGetErrorName(int code, const char **name) {
    FAIL_IF_TOLD;
    *name = code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? 0 : INVALID_VALUE;
}
EXPORT cuModuleGetFunction(void **found, void *module, const char *name) {
    FAIL_IF_TOLD;
    return function(found, module, name);
}
EXPORT cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *stream, void **parameters, void **extra) {
    FAIL_IF_TOLD;
    if (y != 1 || z != 1 || by != 1 || bz != 1 || shared || stream || extra) return INVALID_VALUE;
    return no_context() ? INVALID_CONTEXT : launch(function, x * bx, parameters);
}
EXPORT cuStreamQuery(void *stream) { FAIL_IF_TOLD; return no_context() ? INVALID_CONTEXT : query(stream); }
EXPORT cuCtxSynchronize(void) { FAIL_IF_TOLD; return no_context() ? INVALID_CONTEXT : synchronize(); }
EXPORT cuMemGetAllocationGranularity(size_t *unit, const struct properties *p, int option) {
    FAIL_IF_TOLD;
    return option ? INVALID_VALUE : own_granularity(unit, p);
}
EXPORT cuMemCreate(uint64_t *handle, size_t bytes, const struct properties *p, uint64_t flags) {
    FAIL_IF_TOLD;
    return flags ? INVALID_VALUE : own_create(handle, bytes, p);
}
EXPORT cuMemRelease(uint64_t handle) { FAIL_IF_TOLD; return own_release(handle); }
EXPORT cuMemExportToShareableHandle(int *file, uint64_t handle, int kind, uint64_t flags) {
    FAIL_IF_TOLD;
    return flags ? INVALID_VALUE : own_export(file, handle, kind);
}
EXPORT cuMemImportFromShareableHandle(uint64_t *handle, void *file, int kind) {
    FAIL_IF_TOLD;
    return own_import(handle, (int)(intptr_t)file, kind);
}
EXPORT cuMemAddressReserve(uint64_t *address, size_t bytes, size_t alignment, uint64_t wanted, uint64_t flags) {
    FAIL_IF_TOLD;
    return alignment || wanted || flags ? INVALID_VALUE : own_reserve(address, bytes);
}
EXPORT cuMemAddressFree(uint64_t address, size_t bytes) { FAIL_IF_TOLD; return own_unreserve(address, bytes); }
EXPORT cuMemMap(uint64_t address, size_t bytes, size_t offset, uint64_t handle, uint64_t flags) {
    FAIL_IF_TOLD;
    return flags ? INVALID_VALUE : own_map(address, bytes, offset, handle);
}
EXPORT cuMemUnmap(uint64_t address, size_t bytes) { FAIL_IF_TOLD; return own_unmap(address, bytes); }
EXPORT cuMemSetAccess(uint64_t address, size_t bytes, const struct access *access, size_t count) {
    FAIL_IF_TOLD;
    return no_context() ? INVALID_CONTEXT : own_access(address, bytes, access, count);
}

#else

static __thread int current;

EXPORT hipInit(unsigned flags) {
    FAIL_IF_TOLD;
    initialised = 1;
    return flags ? INVALID_VALUE : devices() ? 0 : INVALID_DEVICE;
}
static int version(void) {
    const char *set = getenv("HSHM_DOUBLE_HIP");
    return set ? atoi(set) : 60342134;
}
EXPORT hipRuntimeGetVersion(int *found) { FAIL_IF_TOLD; *found = version(); return 0; }
EXPORT hipGetDeviceCount(int *number) { return count(number, __func__); }
EXPORT hipGetDevice(int *device) { FAIL_IF_TOLD; *device = current; return 0; }
EXPORT hipSetDevice(int device) {
    FAIL_IF_TOLD;
    if (device < 0 || device >= devices()) return INVALID_DEVICE;
    current = device;
    return 0;
}
EXPORT hipDeviceGetName(char *name, int len, int device) {
    FAIL_IF_TOLD;
    snprintf(name, (size_t)len, "Double %d", device);
    return 0;
}
EXPORT hipDeviceTotalMem(size_t *bytes, int device) { FAIL_IF_TOLD; (void)device; *bytes = (size_t)1 << 34; return 0; }
EXPORT hipDeviceGetAttribute(int *value, int attribute, int device) {
    FAIL_IF_TOLD;
    *value = device == 1;
    /* hipDeviceAttributeHostNativeAtomicSupported, which older releases do not tell. */
    return attribute == 15 && version() >= 60000000 ? 0 : INVALID_VALUE;
}
EXPORT hipHostRegister(void *pointer, size_t bytes, unsigned flags) { FAIL_IF_TOLD; return add(pointer, bytes, flags); }
#ifndef LACKS_UNREGISTER
EXPORT hipHostUnregister(void *pointer) { FAIL_IF_TOLD; return take(pointer); }
#endif
EXPORT hipHostGetDevicePointer(void **device, void *pointer, unsigned flags) {
    FAIL_IF_TOLD;
    uint64_t found = 0;
    int result = flags ? INVALID_VALUE : find(&found, pointer);
    *device = (void *)(uintptr_t)found;
    return result;
}
EXPORT hipModuleLoadData(void **module, const void *image) { FAIL_IF_TOLD; return load(module, image); }
__attribute__((visibility("default"))) const char *hipGetErrorName(int code) {
    return code == ILLEGAL_ADDRESS ? "hipErrorIllegalAddress" : "hipErrorUnknown";
}
EXPORT hipModuleGetFunction(void **found, void *module, const char *name) {
    FAIL_IF_TOLD;
    return function(found, module, name);
}
EXPORT hipModuleLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                             unsigned shared, void *stream, void **parameters, void **extra) {
    FAIL_IF_TOLD;
    if (y != 1 || z != 1 || by != 1 || bz != 1 || shared || stream || extra) return INVALID_VALUE;
    return launch(function, x * bx, parameters);
}
EXPORT hipStreamQuery(void *stream) { FAIL_IF_TOLD; return query(stream); }
EXPORT hipDeviceSynchronize(void) { FAIL_IF_TOLD; return synchronize(); }
/* Before 7.1 a descriptor is passed by its address. */
EXPORT hipMemGetAllocationGranularity(size_t *unit, const struct properties *p, int option) {
    FAIL_IF_TOLD;
    return option ? INVALID_VALUE : own_granularity(unit, p);
}
EXPORT hipMemCreate(uint64_t *handle, size_t bytes, const struct properties *p, uint64_t flags) {
    FAIL_IF_TOLD;
    return flags ? INVALID_VALUE : own_create(handle, bytes, p);
}
EXPORT hipMemRelease(uint64_t handle) { FAIL_IF_TOLD; return own_release(handle); }
EXPORT hipMemExportToShareableHandle(int *file, uint64_t handle, int kind, uint64_t flags) {
    FAIL_IF_TOLD;
    return flags ? INVALID_VALUE : own_export(file, handle, kind);
}
EXPORT hipMemImportFromShareableHandle(uint64_t *handle, void *file, int kind) {
    FAIL_IF_TOLD;
    return own_import(handle, version() < 70100000 ? *(int *)file : (int)(intptr_t)file, kind);
}
EXPORT hipMemAddressReserve(uint64_t *address, size_t bytes, size_t alignment, uint64_t wanted, uint64_t flags) {
    FAIL_IF_TOLD;
    return alignment || wanted || flags ? INVALID_VALUE : own_reserve(address, bytes);
}
EXPORT hipMemAddressFree(uint64_t address, size_t bytes) { FAIL_IF_TOLD; return own_unreserve(address, bytes); }
EXPORT hipMemMap(uint64_t address, size_t bytes, size_t offset, uint64_t handle, uint64_t flags) {
    FAIL_IF_TOLD;
    return flags ? INVALID_VALUE : own_map(address, bytes, offset, handle);
}
EXPORT hipMemUnmap(uint64_t address, size_t bytes) { FAIL_IF_TOLD; return own_unmap(address, bytes); }
EXPORT hipMemSetAccess(uint64_t address, size_t bytes, const struct access *access, size_t count) {
    FAIL_IF_TOLD;
    return own_access(address, bytes, access, count);
}

#endif
