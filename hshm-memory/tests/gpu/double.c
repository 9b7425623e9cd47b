/* Stands in for a driver's library in tests: NVIDIA's if compiled with -DCUDA, AMD's HIP otherwise.
 *
 * It keeps a table of what is registered, insists on a current context where the real one does, and gives
 * addresses on the device that differ from the host's, so that a forgotten translation shows.
 *
 *   HSHM_DOUBLE_DEVICES   how many devices there are; 2 if not set
 *   HSHM_DOUBLE_FAIL      CALL=CODE: each such call fails with the code; CALL=CODE@N: those from the Nth on
 *   HSHM_DOUBLE_SCATTER   if set, each registration is elsewhere on the device
 *   HSHM_DOUBLE_CRASH     if set, the first call ends the process
 *   HSHM_DOUBLE_LOG       a file to which registrations and their ends are written
 *
 * An image of kernels is the path of a shared library here, with its final zero, and a kernel runs on as many threads
 * of the host as it has: tests/device/kernels.cu can be compiled so.
 *
 * -DLACKS_UNREGISTER leaves a function out.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALISED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, ALREADY_REGISTERED = 712,
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

/* Where the host's threads find what kernels know by this address; 0 if nowhere. */
static uint64_t translate(uint64_t device) {
    uint64_t result = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++)
        if (table[i].end && table[i].start + table[i].shift <= device && device < table[i].end + table[i].shift)
            result = device - table[i].shift;
    pthread_mutex_unlock(&lock);
    return result;
}

enum { MOST_THREADS = 1024 };
static struct { pthread_t threads[MOST_THREADS]; int count; void *given[MOST_THREADS]; } running;
struct work { int (*kernel)(const void *); const void *given; };

static void *work(void *own) {
    struct work work = *(struct work *)own;
    free(own);
    return work.kernel(work.given) ? own : NULL;
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
    made->bytes = *bytes;
    *(void **)&made->kernel = kernel;
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
    running.count = 0;
    return result;
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
EXPORT cuCtxSynchronize(void) { FAIL_IF_TOLD; return no_context() ? INVALID_CONTEXT : synchronize(); }

#else

static __thread int current;

EXPORT hipInit(unsigned flags) {
    FAIL_IF_TOLD;
    initialised = 1;
    return flags ? INVALID_VALUE : devices() ? 0 : INVALID_DEVICE;
}
EXPORT hipRuntimeGetVersion(int *version) { FAIL_IF_TOLD; *version = 60342134; return 0; }
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
EXPORT hipDeviceSynchronize(void) { FAIL_IF_TOLD; return synchronize(); }

#endif
